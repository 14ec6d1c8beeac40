//! Runtimes nobody here wrote use our plugins: podman with its CNI backend, and containerd.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::plugins::{installed, said};
use crate::support::{World, world};

/// A file system with the one program it takes.
fn rootfs(world: &World) -> std::path::PathBuf {
    let root = world.dir.path().join("rootfs");
    for dir in ["bin", "etc", "proc", "dev", "sys", "tmp", "run"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    root
}

fn network(world: &World) -> String {
    json!({"cniVersion": "0.4.0", "name": "ours", "plugins": [
        {"type": "bridge", "bridge": "pod0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
         "ipam": {"type": "host-local", "dataDir": world.dir.path().join("pods"),
                  "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": "10.90.0.0/24"}]]}},
        {"type": "portmap", "capabilities": {"portMappings": true}},
        {"type": "bandwidth", "capabilities": {"bandwidth": true}},
        {"type": "firewall", "backend": ""},
        {"type": "tuning"},
    ]})
    .to_string()
}

/// The container saw its address and got an answer from outside; nothing is left.
fn assert_worked(world: &World, out: &std::process::Output) {
    let text = String::from_utf8_lossy(&out.stdout);
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(text.contains("10.90.0.") && text.contains("203.0.113.1"), "{text}\n{errors}");
    assert!(!said("ip -o link").contains("veth"), "{}", said("ip -o link"));
    assert!(world.rules().iter().all(|t| !t.contains("cni-")), "{:?}", world.rules());
    let left = std::fs::read_dir(world.dir.path().join("pods/ours")).unwrap();
    assert!(!left.flatten().any(|e| e.file_name().to_string_lossy().starts_with("10.")));
}

fn script(world: &World) -> String {
    format!("/bin/busybox ip addr show eth0; /bin/busybox nc 203.0.113.2 {}", world.port())
}

fn have(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}

#[test]
fn podman() {
    assert!(have("podman"), "podman is missing: see integration/setup.sh");
    world(|world| async move {
        let dir = world.dir.path();
        let networks = dir.join("networks");
        std::fs::create_dir(&networks).unwrap();
        std::fs::write(networks.join("ours.conflist"), network(&world)).unwrap();
        let conf = format!(
            "[network]\nnetwork_backend=\"cni\"\ncni_plugin_dirs=[{:?}]\nnetwork_config_dir={networks:?}\n\
             default_network=\"ours\"\n[engine]\ncgroup_manager=\"cgroupfs\"\nevents_logger=\"none\"\n",
            installed(&world)
        );
        std::fs::write(dir.join("containers.conf"), conf).unwrap();
        let mut podman = Command::new("podman");
        podman.env("CONTAINERS_CONF", dir.join("containers.conf")).env("HOME", dir);
        podman.args(["--storage-driver=vfs", "--runtime=runc", "--root"]).arg(dir.join("podman-root"));
        podman.arg("--runroot").arg(dir.join("podman-run"));
        podman.args(["run", "--rm", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]);
        podman.args(["--network=ours", "--publish=8077:80", "--rootfs"]).arg(rootfs(&world));
        podman.args(["/bin/busybox", "sh", "-c", &script(&world)]);
        assert_worked(&world, &podman.output().unwrap());
    });
}

/// `ctr` knows only the directories everyone knows, so these are laid over in a mount
/// namespace of its own.
#[test]
fn containerd() {
    assert!(have("ctr") && have("containerd"), "containerd is missing: see integration/setup.sh");
    world(|world| async move {
        let dir = world.dir.path();
        std::fs::write(dir.join("net.conflist"), network(&world)).unwrap();
        let root = rootfs(&world);
        let bin = installed(&world);
        let line = |dir: &Path| {
            format!(
                "set -e; D={dir}; mount -t tmpfs none /opt; mkdir -p /opt/cni; ln -s {bin} /opt/cni/bin
                mkdir $D/over; mount -t tmpfs none $D/over; mkdir $D/over/u $D/over/w
                mount -t overlay -o lowerdir=/etc,upperdir=$D/over/u,workdir=$D/over/w none /etc
                mkdir -p /etc/cni/net.d; rm -f /etc/cni/net.d/*; cp $D/net.conflist /etc/cni/net.d/10-ours.conflist
                containerd --root $D/cd --state $D/state --address $D/cd.sock >$D/log 2>&1 & C=$!
                trap 'kill $C; wait $C || true' EXIT
                n=0; until [ -S $D/cd.sock ] || [ $n = 300 ]; do n=$((n+1)); sleep 0.1; done
                timeout 60 ctr -a $D/cd.sock run --cni --rm --rootfs {root} one /bin/busybox sh -c '{script}'",
                dir = dir.display(),
                bin = bin.display(),
                root = root.display(),
                script = script(&world),
            )
        };
        let out = Command::new("unshare").args(["-m", "sh", "-c", &line(dir)]).output().unwrap();
        assert_worked(&world, &out);
    });
}
