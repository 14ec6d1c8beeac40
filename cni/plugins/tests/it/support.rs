//! A world: a host with an uplink, and something outside that says who asked.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base::Failure;
use base::task::Scope;
use cni::{Config, Mode, Namespace, Networks};
use cni_plugins::Plugins;
use cni_plugins::link::{NewRoute, Veth};
use cni_plugins::netlink::Socket;
use sys::netns::NetNs;

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) outside: NetNs,
    server: Server,
}

/// Runs a test on the host of a world of its own.
pub(crate) fn world<F: Future<Output = ()>>(test: impl FnOnce(World) -> F + Send) {
    let run = || {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async { test(World::new()).await });
    };
    NetNs::create(run).unwrap();
}

impl Drop for World {
    /// A test that failed leaves namespaces bound to files.
    fn drop(&mut self) {
        _ = sys::mount::detach_below(self.dir.path());
    }
}

/// Answers each connection with the address of its peer.
pub(crate) struct Server {
    pub(crate) port: u16,
    stop: Arc<AtomicBool>,
    address: SocketAddr,
    ns: Arc<NetNs>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let address = self.address;
        _ = self.ns.run(|| TcpStream::connect_timeout(&address, Duration::from_secs(1)));
        _ = self.thread.take().unwrap().join();
    }
}

/// Sets `lo` up.
pub(crate) fn loopback() {
    let mut socket = Socket::route().unwrap();
    let lo = socket.link("lo").unwrap().unwrap().index;
    socket.set_up(lo).unwrap();
}

fn net(text: &str) -> cni::Cidr {
    text.parse().unwrap()
}

fn route(to: &str, gateway: IpAddr) -> NewRoute {
    NewRoute {
        dst: net(to),
        gateway: Some(gateway),
        mtu: None,
        advmss: None,
        priority: None,
        table: None,
        scope: None,
    }
}

pub(crate) fn address_of(namespace: &Namespace) -> IpAddr {
    namespace.result().unwrap().ips[0].address.addr
}

impl World {
    pub(crate) const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));
    pub(crate) const HOST6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
    const OUTSIDE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2));
    const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 2));

    fn new() -> Self {
        loopback();
        let mut host = Socket::route().unwrap();
        let (outside, far) = NetNs::create(|| {
            loopback();
            Socket::route()
        })
        .unwrap();
        let mut far = far.unwrap();
        host.create_veth(&Veth {
            name: "up0",
            peer: "down0",
            peer_netns: std::os::fd::AsFd::as_fd(&outside),
            peer_mac: None,
            mtu: 1480,
            master: 0,
        })
        .unwrap();
        // Configured by hand, not by what a router says.
        std::fs::write("/proc/sys/net/ipv6/conf/up0/accept_ra", "0").unwrap();
        for (socket, name, addresses) in [
            (&mut host, "up0", ["203.0.113.1/24", "2001:db8::1/64"]),
            (&mut far, "down0", ["203.0.113.2/24", "2001:db8::2/64"]),
        ] {
            let index = socket.link(name).unwrap().unwrap().index;
            for address in addresses {
                socket.add_address(index, net(address)).unwrap();
            }
            socket.set_up(index).unwrap();
        }
        let (up, down) =
            (host.link("up0").unwrap().unwrap().index, far.link("down0").unwrap().unwrap().index);
        host.add_route(up, &route("0.0.0.0/0", Self::OUTSIDE)).unwrap();
        host.add_route(up, &route("::/0", Self::OUTSIDE6)).unwrap();
        host.add_route(up, &route("10.10.4.0/24", Self::OUTSIDE)).unwrap();
        far.add_route(down, &route("10.0.0.0/8", Self::HOST)).unwrap();
        far.add_route(down, &route("fd00::/8", Self::HOST6)).unwrap();
        let server = Self::listen(&outside);
        Self { dir: tempfile::tempdir().unwrap(), outside, server }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub(crate) fn config_path(&self) -> PathBuf {
        self.dir.path().join("cni.json.conflist")
    }

    pub(crate) async fn open(&self, mode: Mode, pool_size: usize) -> Result<Networks, Failure> {
        let config = Config {
            mode,
            root: self.root(),
            config_path: self.config_path(),
            plugin_path: vec!["/usr/lib/cni".into()],
            pool_size,
            ..Config::default()
        };
        Networks::open(config, Plugins::new(), &Scope::root()).await
    }

    pub(crate) fn listen(ns: &NetNs) -> Server {
        let listener = ns.run(|| TcpListener::bind("[::]:0")).unwrap().unwrap();
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), listener.local_addr().unwrap().port());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while let Ok((mut stream, peer)) = listener.accept() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                _ = stream.write_all(peer.ip().to_canonical().to_string().as_bytes());
            }
        });
        let ns = Arc::new(ns.run(NetNs::current).unwrap().unwrap());
        Server { port: address.port(), stop, address, ns, thread: Some(thread) }
    }

    pub(crate) fn connect(from: &NetNs, to: IpAddr, port: u16) -> std::io::Result<String> {
        Self::connect_within(from, to, port, Duration::from_secs(20))
    }

    /// Nothing can be had there. That takes a moment to be believed.
    pub(crate) fn refuses(from: &NetNs, to: IpAddr, port: u16) -> bool {
        Self::connect_within(from, to, port, Duration::from_millis(700)).is_err()
    }

    fn connect_within(from: &NetNs, to: IpAddr, port: u16, patience: Duration) -> std::io::Result<String> {
        from.run(|| {
            let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, port), patience)?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })
        .unwrap()
    }

    /// Whom the world outside sees when somebody in `from` asks it.
    pub(crate) fn ask(&self, from: &NetNs) -> std::io::Result<IpAddr> {
        Self::connect(from, Self::OUTSIDE, self.server.port).map(|text| text.parse().unwrap())
    }

    /// Nothing outside answers somebody in `from`.
    pub(crate) fn refused_outside(&self, from: &NetNs) -> bool {
        Self::refuses(from, Self::OUTSIDE, self.server.port)
    }

    /// Where the one outside listens.
    pub(crate) fn port(&self) -> u16 {
        self.server.port
    }

    /// As [`Self::ask`], by IPv6.
    pub(crate) fn ask6(&self, from: &NetNs) -> std::io::Result<IpAddr> {
        Self::connect(from, Self::OUTSIDE6, self.server.port).map(|text| text.parse().unwrap())
    }

    pub(crate) fn rules(&self) -> Vec<String> {
        let out = std::process::Command::new("nft").args(["list", "tables"]).output().unwrap();
        String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    /// The kernel can make interfaces of a kind on another.
    pub(crate) fn makes(&self, kind: &str) -> bool {
        let id = if kind == "vlan" { " id 9" } else { "" };
        self.tries(&format!("ip link add try0 link down0 type {kind}{id}"))
    }

    /// The kernel can make interfaces that lead nowhere.
    pub(crate) fn has_dummies(&self) -> bool {
        self.tries("ip link add try0 type dummy")
    }

    /// The kernel can make bridges that keep VLANs apart.
    pub(crate) fn makes_vlan_bridges(&self) -> bool {
        self.tries("ip link add try0 type bridge vlan_filtering 1")
    }

    fn tries(&self, line: &str) -> bool {
        self.outside
            .run(|| {
                let made = std::process::Command::new("sh").args(["-c", line]).output().unwrap();
                _ = std::process::Command::new("sh").args(["-c", "ip link delete try0"]).output();
                made.status.success()
            })
            .unwrap()
    }

    pub(crate) fn delete_link(&self, name: &str) {
        Socket::route().unwrap().delete(name).unwrap();
    }

    /// Only what was there at the beginning is there.
    pub(crate) fn assert_clean(&self) {
        let until = Instant::now() + Duration::from_secs(10);
        let names = || -> Vec<String> {
            Socket::route()
                .unwrap()
                .links()
                .unwrap()
                .into_iter()
                .map(|l| l.name)
                .filter(|n| n.starts_with("veth") || n.starts_with("buildkit"))
                .collect()
        };
        // The kernel takes its time with the links of a namespace that has ended.
        while !names().is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(names(), Vec::<String>::new());
        assert_eq!(self.rules(), Vec::<String>::new());
        for dir in ["cni", "ledger"] {
            let left: Vec<_> = std::fs::read_dir(self.root().join("net").join(dir)).unwrap().collect();
            assert!(left.is_empty(), "{left:?}");
        }
        assert!(!self.root().join("net/ipam").exists());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "{mounts}");
    }
}
