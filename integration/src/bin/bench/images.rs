//! Things to build from: images of many layers, directories and archives of
//! many files.

use std::io::Write;
use std::path::Path;

use anyhow::Result;
use flate2::Compression;
use flate2::write::GzEncoder;
use integration::http;
use integration::image::{Image, digest, push_blob};
use serde_json::{Value, json};
use tar::{Builder, Header};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Bytes that compress about as well as programs do.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
        bytes.extend_from_slice(b"mov eax,");
    }
    bytes.truncate(length);
    bytes
}

/// A tar file of `count` files in directories of a hundred.
pub(crate) fn archive(seed: u64, count: u64, size: usize) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for i in 0..count {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(1_704_067_200);
        header.set_size(size as u64);
        let path = format!("files-{seed}/{:03}/{i:06}", i / 100);
        tar.append_data(&mut header, path, noise(seed.wrapping_mul(1 << 20) + i, size).as_slice())?;
    }
    Ok(tar.into_inner()?)
}

/// Writes `count` files of `size` bytes below `directory`.
pub(crate) fn files(directory: &Path, count: u64, size: usize) -> Result<()> {
    for i in 0..count {
        let parent = directory.join(format!("{:03}", i / 100));
        if i % 100 == 0 {
            std::fs::create_dir_all(&parent)?;
        }
        std::fs::write(parent.join(format!("{i:06}")), noise(i + 1, size))?;
    }
    Ok(())
}

/// Pushes busybox with `layers - 1` further layers of 300 files.
pub(crate) fn push_layered(host: &str, name: &str, layers: u64) -> Result<()> {
    let base = Image::busybox()?;
    let mut config: Value = serde_json::from_slice(&base.config)?;
    let mut manifest: Value = serde_json::from_slice(&base.manifest)?;
    push_blob(host, name, &base.layer)?;
    for seed in 1..layers {
        let plain = archive(seed, 300, 12 << 10)?;
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&plain)?;
        let packed = gzip.finish()?;
        push_blob(host, name, &packed)?;
        if let Some(ids) = config["rootfs"]["diff_ids"].as_array_mut() {
            ids.push(digest(&plain).into());
        }
        if let Some(history) = config["history"].as_array_mut() {
            history.push(json!({"created": "2024-01-01T00:00:00Z", "created_by": format!("layer {seed}")}));
        }
        if let Some(list) = manifest["layers"].as_array_mut() {
            list.push(json!({"mediaType": LAYER, "digest": digest(&packed), "size": packed.len()}));
        }
    }
    let config = serde_json::to_vec(&config)?;
    push_blob(host, name, &config)?;
    manifest["config"]["digest"] = digest(&config).into();
    manifest["config"]["size"] = config.len().into();
    let body = serde_json::to_vec(&manifest)?;
    let path = format!("/v2/{name}/manifests/latest");
    http::send(host, "PUT", &path, &[("Content-Type", MANIFEST)], &body)?.success()?;
    Ok(())
}
