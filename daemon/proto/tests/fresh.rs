//! The checked-in code under `src/gen` is what the `.proto` files generate.
//!
//! After an edit to a `.proto` file: `PROTO_WRITE=1 cargo test -p proto`.

use std::path::Path;

use protox::prost::Message as _;

#[test]
fn generated_code_is_fresh() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = root.join("proto");
    let mut files: Vec<_> = std::fs::read_dir(&sources).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let set = protox::compile(&files, [&sources]).unwrap();

    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .btree_map(".")
        .bytes(".fsutil.types.Packet.data")
        .bytes(".moby.buildkit.v1.BytesMessage")
        .bytes(".moby.filesync.v1.BytesMessage")
        .bytes(".moby.sshforward.v1.BytesMessage")
        .bytes(".moby.upload.v1.BytesMessage")
        .bytes(".containerd.services.content.v1")
        .emit_rerun_if_changed(false)
        .file_descriptor_set_path(out.path().join("descriptors.bin"))
        .out_dir(out.path())
        .compile_fds(set.clone())
        .unwrap();
    std::fs::write(out.path().join("descriptors.bin"), set.encode_to_vec()).unwrap();

    let checked_in = root.join("src/gen");
    let write = std::env::var_os("PROTO_WRITE").is_some();
    let mut stale = Vec::new();
    for entry in std::fs::read_dir(out.path()).unwrap() {
        let entry = entry.unwrap();
        let (new, old) = (std::fs::read(entry.path()).unwrap(), checked_in.join(entry.file_name()));
        if std::fs::read(&old).ok().as_deref() != Some(&new) {
            if write {
                std::fs::write(&old, &new).unwrap();
            }
            stale.push(entry.file_name());
        }
    }
    assert!(write || stale.is_empty(), "stale: {stale:?}; run PROTO_WRITE=1 cargo test -p proto");
}
