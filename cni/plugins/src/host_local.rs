//! `host-local`: addresses out of ranges, remembered in a directory.
//!
//! The files are those of the plugin everyone knows: for each address a file of its
//! name that says who has it, `last_reserved_ip.N` for each range set, and `lock`.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cni::dns::ResolvConf;
use cni::result::{Address, Dns, Route};
use cni::{Call, Cidr, Code, Command, NetworkResult, Plugin, PluginError};
use rustix::fs::FlockOperation;
use serde::Deserialize;

use crate::conf::{argument, failed, failed_io, network, read};

const DEFAULT_DIR: &str = "/var/lib/cni/networks";
const LOCK: &str = "lock";
const LAST: &str = "last_reserved_ip.";

pub(crate) struct HostLocal;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Conf {
    ipam: Option<Ipam>,
    #[serde(default)]
    runtime_config: Runtime,
}

#[derive(Deserialize, Default)]
struct Runtime {
    #[serde(default)]
    ips: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ipam {
    #[serde(default)]
    ranges: Vec<Vec<Range>>,
    /// One range, as it was written before there were several.
    #[serde(flatten)]
    only: Option<Range>,
    #[serde(default)]
    routes: Vec<Route>,
    #[serde(default)]
    data_dir: Option<PathBuf>,
    #[serde(default)]
    resolv_conf: Option<PathBuf>,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
struct Range {
    subnet: Cidr,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

impl Plugin for HostLocal {
    fn call(&self, call: &Call<'_>) -> Result<Option<NetworkResult>, PluginError> {
        let conf: Conf = read(call)?;
        let ipam =
            conf.ipam.ok_or_else(|| PluginError::new(Code::InvalidConfig, "ipam settings are missing"))?;
        let dir = ipam.data_dir.clone().unwrap_or_else(|| DEFAULT_DIR.into()).join(network(call));
        let owner = format!("{}\r\n{}", call.attachment.container_id, call.attachment.ifname);
        match call.command {
            Command::Add => add(call, ipam, conf.runtime_config, &dir, &owner).map(Some),
            Command::Del => {
                if dir.exists() {
                    Store::open(&dir)?.release(|who| who != owner && who != call.attachment.container_id)?;
                }
                Ok(None)
            }
            Command::Gc => {
                let valid = valid_owners(call);
                if dir.exists() {
                    Store::open(&dir)?.release(|who| valid.iter().any(|v| v == who))?;
                }
                Ok(None)
            }
            Command::Check => {
                let found = dir.exists() && Store::open(&dir)?.owners()?.iter().any(|(_, who)| *who == owner);
                if found {
                    Ok(None)
                } else {
                    let id = &call.attachment.container_id;
                    Err(PluginError::other(format!("container {id} has no address")))
                }
            }
            Command::Status | Command::Version => Ok(None),
        }
    }
}

/// Who may keep an address, as GC was told.
fn valid_owners(call: &Call<'_>) -> Vec<String> {
    let text = |v: &serde_json::Value, key: &str| {
        v.get(key).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
    };
    let list = call.config.get("cni.dev/valid-attachments").and_then(serde_json::Value::as_array);
    list.into_iter()
        .flatten()
        .map(|v| format!("{}\r\n{}", text(v, "containerID"), text(v, "ifname")))
        .collect()
}

fn add(
    call: &Call<'_>,
    ipam: Ipam,
    runtime: Runtime,
    dir: &Path,
    owner: &str,
) -> Result<NetworkResult, PluginError> {
    let invalid = |message: String| PluginError::new(Code::InvalidConfig, message);
    let mut sets = ipam.ranges;
    if let Some(only) = ipam.only {
        sets.insert(0, vec![only]);
    }
    if sets.is_empty() || sets.iter().any(Vec::is_empty) {
        return Err(invalid("no address ranges".into()));
    }
    let mut wanted = Vec::new();
    let asked = argument(call, "IP").into_iter().flat_map(|text| text.split(','));
    for text in asked.chain(runtime.ips.iter().map(String::as_str)) {
        let text = text.split('/').next().unwrap_or_default();
        wanted.push(text.parse::<IpAddr>().map_err(|_| invalid(format!("invalid address {text:?}")))?);
    }
    let store = Store::open(dir)?;
    let mut ips = Vec::new();
    for (number, set) in sets.into_iter().enumerate() {
        let set: Vec<Bounds> = set.into_iter().map(Bounds::new).collect::<Result<_, _>>()?;
        match store.take(number, &set, &mut wanted, owner) {
            Ok(ip) => ips.push(ip),
            Err(e) => {
                store.release(|who| who != owner)?;
                return Err(e);
            }
        }
    }
    if !wanted.is_empty() {
        store.release(|who| who != owner)?;
        return Err(invalid(format!("addresses {wanted:?} are in no range")));
    }
    let dns = ipam.resolv_conf.map(|path| ResolvConf::load(&path)).unwrap_or_default();
    Ok(NetworkResult {
        ips,
        routes: ipam.routes,
        dns: Dns {
            nameservers: dns.nameservers,
            search: dns.search,
            options: dns.options,
            domain: String::new(),
        },
        ..NetworkResult::default()
    })
}

/// A range with its ends.
struct Bounds {
    subnet: Cidr,
    /// Places in the subnet, both included.
    first: u128,
    last: u128,
    gateway: IpAddr,
}

impl Bounds {
    fn new(range: Range) -> Result<Self, PluginError> {
        let subnet = range.subnet.network();
        let invalid = |what: &str| PluginError::new(Code::InvalidConfig, format!("range {subnet}: {what}"));
        // The first address names the network, the last one all of it; the gateway is another.
        if subnet.size() < 4 {
            return Err(invalid("too small to hold a gateway and a container"));
        }
        let end = subnet.size() - 2;
        let first = match range.range_start {
            Some(addr) => {
                place(subnet, addr).ok_or_else(|| invalid("it does not start in its subnet"))?.max(1)
            }
            None => 1,
        };
        let last = match range.range_end {
            Some(addr) => {
                place(subnet, addr).ok_or_else(|| invalid("it does not end in its subnet"))?.min(end)
            }
            None => end,
        };
        if first > last {
            return Err(invalid("it ends before it starts"));
        }
        let gateway = match range.gateway {
            Some(gateway) => gateway,
            None => subnet.nth(1).ok_or_else(|| invalid("it has no place for a gateway"))?,
        };
        Ok(Self { subnet, first, last, gateway })
    }

    fn contains(&self, addr: IpAddr) -> bool {
        let (Some(first), Some(last)) = (self.subnet.nth(self.first), self.subnet.nth(self.last)) else {
            return false;
        };
        self.subnet.contains(addr) && addr >= first && addr <= last
    }
}

/// How a file is opened that only we write. The store may be where everybody gets, and this
/// runs in a process without a umask.
fn file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o644);
    options
}

/// The directory, held by a lock.
struct Store<'a> {
    dir: &'a Path,
    _lock: File,
}

impl<'a> Store<'a> {
    fn open(dir: &'a Path) -> Result<Self, PluginError> {
        let error = failed_io("address store");
        DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(&error)?;
        let lock = file().create(true).truncate(false).open(dir.join(LOCK)).map_err(&error)?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(failed("lock address store"))?;
        Ok(Self { dir, _lock: lock })
    }

    /// Takes an address out of a set of ranges: one that was asked for, or the next free
    /// one after the one that was given out last, so that none is used again at once.
    fn take(
        &self,
        number: usize,
        set: &[Bounds],
        wanted: &mut Vec<IpAddr>,
        owner: &str,
    ) -> Result<Address, PluginError> {
        let asked = wanted.iter().position(|ip| set.iter().any(|r| r.subnet.contains(*ip)));
        if let Some(at) = asked {
            let ip = wanted.swap_remove(at);
            let range = set.iter().find(|r| r.contains(ip));
            let range =
                range.ok_or_else(|| PluginError::other(format!("address {ip} is not in its range")))?;
            if ip == range.gateway {
                return Err(PluginError::other(format!("address {ip} is the gateway's")));
            }
            if !self.reserve(ip, owner)? {
                return Err(PluginError::other(format!("address {ip} is taken")));
            }
            return address(range, ip);
        }
        let last_file = self.dir.join(format!("{LAST}{number}"));
        let last: Option<IpAddr> =
            std::fs::read_to_string(&last_file).ok().and_then(|text| text.trim().parse().ok());
        for (range, ip) in candidates(set, last) {
            if ip != range.gateway && self.reserve(ip, owner)? {
                let written = file().create(true).truncate(true).open(&last_file);
                let written = written.and_then(|mut file| file.write_all(ip.to_string().as_bytes()));
                written.map_err(failed_io("address store"))?;
                return address(range, ip);
            }
        }
        let ranges: Vec<String> = set.iter().map(|r| r.subnet.to_string()).collect();
        Err(PluginError::other(format!("no free address in {}", ranges.join(", "))))
    }

    fn reserve(&self, ip: IpAddr, owner: &str) -> Result<bool, PluginError> {
        match file().create_new(true).open(self.dir.join(ip.to_string())) {
            Ok(mut file) => {
                file.write_all(owner.as_bytes()).map_err(failed_io("address store"))?;
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(failed_io("address store")(e)),
        }
    }

    /// The addresses that are taken, and by whom.
    fn owners(&self) -> Result<Vec<(PathBuf, String)>, PluginError> {
        let error = failed_io("address store");
        let mut owners = Vec::new();
        for entry in std::fs::read_dir(self.dir).map_err(&error)? {
            let entry = entry.map_err(&error)?;
            if entry.file_name().to_str().is_some_and(|n| n.parse::<IpAddr>().is_ok()) {
                let text = std::fs::read_to_string(entry.path()).map_err(&error)?;
                owners.push((entry.path(), text.trim().to_owned()));
            }
        }
        Ok(owners)
    }

    /// Gives back the addresses of those who may not keep them.
    fn release(&self, keep: impl Fn(&str) -> bool) -> Result<(), PluginError> {
        for (path, owner) in self.owners()? {
            if !keep(&owner) {
                std::fs::remove_file(path).map_err(failed_io("address store"))?;
            }
        }
        Ok(())
    }
}

fn address(range: &Bounds, ip: IpAddr) -> Result<Address, PluginError> {
    let address =
        Cidr::new(ip, range.subnet.prefix).ok_or_else(|| PluginError::other("address and range differ"))?;
    Ok(Address { interface: None, address, gateway: Some(range.gateway) })
}

/// All addresses of a set, once, from the one after `last` on.
fn candidates(set: &[Bounds], last: Option<IpAddr>) -> impl Iterator<Item = (&Bounds, IpAddr)> {
    let start = last.and_then(|last| set.iter().position(|r| r.contains(last))).unwrap_or(0);
    let ips = |r: &Bounds, from: u128, to: u128| {
        let subnet = r.subnet;
        (from..=to).map_while(move |n| subnet.nth(n))
    };
    // The first range is begun in the middle, and its beginning comes last.
    let split = set.get(start).map(|r| match last.and_then(|last| place(r.subnet, last)) {
        Some(last) => last.saturating_add(1).max(r.first),
        None => r.first,
    });
    let split = split.unwrap_or_default();
    let order = set.iter().skip(start).chain(set.iter().take(start)).enumerate();
    let after = order.flat_map(move |(at, range)| {
        ips(range, if at == 0 { split } else { range.first }, range.last).map(move |ip| (range, ip))
    });
    let before = set.get(start).into_iter().flat_map(move |range| {
        ips(range, range.first, range.last.min(split.saturating_sub(1))).map(move |ip| (range, ip))
    });
    after.chain(before)
}

/// The place of an address in a subnet.
fn place(subnet: Cidr, addr: IpAddr) -> Option<u128> {
    let place = match (addr, subnet.network().addr) {
        (IpAddr::V4(a), IpAddr::V4(b)) => u128::from(a.to_bits().checked_sub(b.to_bits())?),
        (IpAddr::V6(a), IpAddr::V6(b)) => a.to_bits().checked_sub(b.to_bits())?,
        _ => return None,
    };
    subnet.contains(addr).then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::Attachment;
    use serde_json::{Value, json};

    struct Bench(tempfile::TempDir);

    impl Bench {
        fn call(
            &self,
            command: Command,
            id: &str,
            ipam: Value,
        ) -> Result<Option<NetworkResult>, PluginError> {
            let mut ipam = ipam;
            ipam["dataDir"] = json!(self.0.path());
            let config = json!({"name": "net", "cniVersion": "1.0.0", "ipam": ipam});
            let (id, args) = id
                .split_once('@')
                .map_or((id, vec![]), |(id, ip)| (id, vec![("IP".to_owned(), ip.to_owned())]));
            let attachment = Attachment {
                container_id: id.into(),
                netns: None,
                ifname: "eth0".into(),
                args,
                ..Attachment::default()
            };
            HostLocal.call(&Call {
                command,
                attachment: &attachment,
                path: &[],
                config: &config,
                namespace_ends: false,
            })
        }

        fn add(&self, id: &str, ipam: &Value) -> Vec<String> {
            match self.call(Command::Add, id, ipam.clone()) {
                Ok(result) => result.unwrap().ips.iter().map(|ip| ip.address.to_string()).collect(),
                Err(e) => vec![e.msg],
            }
        }
    }

    #[test]
    fn gives_out_each_address_once_and_around() {
        let bench = Bench(tempfile::tempdir().unwrap());
        let ipam = json!({"type": "host-local", "subnet": "10.1.0.0/29"});
        let taken: Vec<_> = (0..6).flat_map(|n| bench.add(&format!("c{n}"), &ipam)).collect();
        assert_eq!(
            taken,
            [
                "10.1.0.2/29",
                "10.1.0.3/29",
                "10.1.0.4/29",
                "10.1.0.5/29",
                "10.1.0.6/29",
                "no free address in 10.1.0.0/29"
            ]
        );
        bench.call(Command::Del, "c1", ipam.clone()).unwrap();
        bench.call(Command::Del, "c1", ipam.clone()).unwrap();
        bench.call(Command::Check, "c2", ipam.clone()).unwrap();
        assert!(bench.call(Command::Check, "c1", ipam.clone()).is_err());
        assert_eq!(bench.add("d", &ipam), ["10.1.0.3/29"]);
        bench.call(Command::Del, "c4", ipam.clone()).unwrap();
        bench.call(Command::Del, "c0", ipam.clone()).unwrap();
        assert_eq!(bench.add("e", &ipam), ["10.1.0.6/29"], "not the one that was given back last");
    }

    #[test]
    fn both_families_and_requests() {
        let bench = Bench(tempfile::tempdir().unwrap());
        let ipam = json!({"ranges": [
            [{"subnet": "10.2.0.0/24", "rangeStart": "10.2.0.10", "rangeEnd": "10.2.0.11"}, {"subnet": "10.3.0.0/30"}],
            [{"subnet": "fd00::/64", "gateway": "fd00::ff"}],
        ]});
        assert_eq!(bench.add("a", &ipam), ["10.2.0.10/24", "fd00::1/64"]);
        assert_eq!(bench.add("b", &ipam), ["10.2.0.11/24", "fd00::2/64"]);
        assert_eq!(bench.add("c", &ipam), ["10.3.0.2/30", "fd00::3/64"]);
        assert_eq!(bench.add("d", &ipam), ["no free address in 10.2.0.0/24, 10.3.0.0/30"]);
        bench.call(Command::Del, "b", ipam.clone()).unwrap();
        assert_eq!(bench.add("e@10.2.0.11,fd00::77", &ipam), ["10.2.0.11/24", "fd00::77/64"]);
        assert_eq!(bench.add("f@10.2.0.11", &ipam), ["address 10.2.0.11 is taken"]);
        assert_eq!(bench.add("g@10.9.0.1", &ipam).len(), 1);
        let owners = std::fs::read_to_string(bench.0.path().join("net/10.2.0.10")).unwrap();
        assert_eq!(owners, "a\r\neth0");
    }

    #[test]
    fn nonsense_is_refused() {
        let bench = Bench(tempfile::tempdir().unwrap());
        for ipam in [
            json!({}),
            json!({"ranges": [[]]}),
            json!({"subnet": "10.0.0.0/31"}),
            json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1"}),
            json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"}),
            json!({"ranges": [[{"subnet": "nonsense"}]]}),
        ] {
            assert!(bench.call(Command::Add, "a", ipam.clone()).is_err(), "{ipam}");
        }
    }
}
