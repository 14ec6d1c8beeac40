//! Against the registry that most of the world runs.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base::descriptor::media;
use base::{Descriptor, Digest, Platform};
use bytes::Bytes;
use registry::{Access, File, Pushed, Reference, Registries, Repository};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

use crate::mock::{blob, config};

struct Real {
    child: Child,
    host: String,
    _dir: TempDir,
}

impl Drop for Real {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

impl Real {
    async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        // The port is free now; nobody else takes from this range by number.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n",
            dir.path().join("data").display()
        );
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let real = Self { child, host, _dir: dir };
        while tokio::net::TcpStream::connect(&real.host).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        real
    }

    async fn repository(&self, registries: &Registries, name: &str) -> Repository {
        let reference: Reference = format!("{}/{name}", self.host).parse().unwrap();
        registries.repository(&reference, &Access::anonymous()).await.unwrap()
    }
}

/// Pushes an image with one layer for `platform`.
async fn push_image(repository: &Repository, platform: &Platform, layer: &Descriptor) -> Descriptor {
    let config = Bytes::from(format!(
        r#"{{"architecture":"{}","os":"linux","rootfs":{{"type":"layers","diff_ids":[]}}}}"#,
        platform.architecture
    ));
    let mut config_desc = blob(&config);
    config_desc.media_type = media::OCI_CONFIG.into();
    repository.push_blob(&config_desc, Arc::new(config), &[], None).await.unwrap();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "config": config_desc, "layers": [layer],
    });
    let bytes = Bytes::from(manifest.to_string());
    let size = bytes.len() as u64;
    let digest = repository.push_manifest(bytes, media::OCI_MANIFEST, None).await.unwrap();
    let mut desc = Descriptor::new(media::OCI_MANIFEST, digest, size);
    desc.platform = Some(platform.clone());
    desc
}

#[tokio::test]
async fn an_image_goes_there_and_comes_back() {
    let real = Real::start().await;
    let registries = Registries::new(config());
    let repository = real.repository(&registries, "a/one:v1").await;

    let layer: Vec<u8> = (0..700_000_u32).flat_map(u32::to_le_bytes).collect();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("layer");
    std::fs::write(&path, &layer).unwrap();
    let desc = blob(&layer);
    let file = Arc::new(File(path));
    assert_eq!(repository.push_blob(&desc, file.clone(), &[], None).await.unwrap(), Pushed::Uploaded);
    assert_eq!(repository.push_blob(&desc, file.clone(), &[], None).await.unwrap(), Pushed::Existed);
    let other = real.repository(&registries, "b").await;
    let mounted = other.push_blob(&desc, file, &["nobody/here".into(), "a/one".into()], None).await.unwrap();
    assert_eq!(mounted, Pushed::Mounted("a/one".into()));

    let platforms: Vec<Platform> = ["linux/amd64", "linux/arm64"].map(|p| p.parse().unwrap()).into();
    let mut entries = Vec::new();
    for platform in &platforms {
        entries.push(push_image(&repository, platform, &desc).await);
    }
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries});
    let digest =
        repository.push_manifest(index.to_string().into(), media::OCI_INDEX, Some("v1")).await.unwrap();

    let root = repository.resolve().await.unwrap();
    assert_eq!((&root.digest, root.media_type.as_str()), (&digest, media::OCI_INDEX));
    for (platform, entry) in platforms.iter().zip(&entries) {
        let image = repository.image(&root, platform).await.unwrap();
        assert_eq!(image.desc.digest, entry.digest);
        assert_eq!(image.manifest.layers, std::slice::from_ref(&desc));
    }
    let none = repository.image(&root, &"linux/s390x".parse().unwrap()).await.unwrap_err();
    assert!(none.is_not_found() && none.to_string().contains("no match for platform"), "{none}");

    for offset in [0, 1, 2_000_000, layer.len()] {
        let mut got = Vec::new();
        let mut reader = repository.open(&desc, offset as u64).await.unwrap();
        reader.read_to_end(&mut got).await.unwrap();
        assert!(got == layer[offset..], "from {offset} on");
    }
    let error = repository.open(&blob(b"unknown"), 0).await.err().unwrap();
    assert!(error.is_not_found(), "{error}");
    let wrong = Descriptor { digest: Digest::of("wrong"), ..desc };
    let refused = repository.push_blob(&wrong, Arc::new(Bytes::from(layer)), &[], None).await.unwrap_err();
    assert!(refused.to_string().contains("digest"), "{refused}");
}
