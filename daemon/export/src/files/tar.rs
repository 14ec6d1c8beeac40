//! `tar`: the files as one tarball.

use std::collections::BTreeMap;
use std::io::{self, Write};

use async_trait::async_trait;
use base::Failure;
use session::Deliver;
use session::fs::{Stat, Tree, mode};
use store::Compression;
use store::tar::{Header, Kind, Writer};

use super::local::roots;
use super::{Options, parts};
use crate::archive;
use crate::error::Error;
use crate::options::Attrs;
use crate::{Context, Deps, Exported, Exporter, Source};

/// The exporter.
pub(crate) struct Tarball {
    id: i64,
    attrs: Attrs,
    deps: Deps,
    options: Options,
}

impl Tarball {
    /// # Errors
    /// An option that makes no sense.
    pub(crate) fn new(id: i64, attrs: Attrs, deps: Deps) -> Result<Self, Error> {
        let options = Options::read(&attrs)?;
        Ok(Self { id, attrs, deps, options })
    }
}

#[async_trait]
impl Exporter for Tarball {
    fn id(&self) -> i64 {
        self.id
    }

    fn name(&self) -> String {
        "exporting to client tarball".to_owned()
    }

    fn kind(&self) -> &'static str {
        "tar"
    }

    fn attrs(&self) -> &BTreeMap<String, String> {
        &self.attrs
    }

    fn compression(&self) -> Compression {
        Compression::default()
    }

    async fn export(&self, source: &Source, context: &Context) -> Result<Exported, Failure> {
        let mut all = context.scope.run(parts(source, &self.options)).await?;
        let tree = match all.pop() {
            Some(one) if !source.is_map() => one.tree,
            last => {
                all.extend(last);
                roots(&all)?
            }
        };
        let caller = context.caller(&self.deps.sessions).await?;
        let to = Deliver { exporter: self.id, ..Deliver::default() };
        let file = caller.send_stream(&to)?;
        let status = context.progress.counter("sending tarball", 0);
        context.scope.run(archive::send(file, move |out| write(out, tree.as_ref()))).await?;
        status.finish();
        Ok(Exported::default())
    }
}

/// Writes a tree as an archive. Sockets, which archives have no word for, are
/// left out.
fn write(out: &mut impl Write, tree: &dyn Tree) -> Result<(), Failure> {
    let mut tar = Writer::new(out);
    tree.walk(&mut |stat| {
        let Some(header) = header(&stat) else { return Ok(()) };
        let written = tar.header(&header).and_then(|()| {
            if header.kind != Kind::Regular || header.size == 0 {
                return Ok(());
            }
            let mut file = tree.open(&stat.path)?;
            io::copy(&mut io::Read::take(&mut file, header.size), &mut tar).map(drop)
        });
        written.map_err(|e| session::Error::Own(archive::lost(&e)))
    })?;
    tar.finish().map_err(|e| archive::lost(&e))?;
    Ok(())
}

fn header(stat: &Stat) -> Option<Header> {
    let kind = match stat.mode & mode::TYPE {
        mode::DIR => Kind::Directory,
        mode::SYMLINK => Kind::Symlink,
        mode::DEVICE => Kind::Block,
        mode::FIFO => Kind::Fifo,
        kind if kind == mode::DEVICE | mode::CHAR_DEVICE => Kind::Character,
        0 if !stat.linkname.is_empty() => Kind::HardLink,
        0 => Kind::Regular,
        _ => return None,
    };
    let mut header = Header::new(kind, stat.path.as_bytes());
    if kind == Kind::Directory {
        header.name.push(b'/');
    }
    header.link = stat.linkname.clone().into_bytes();
    header.mode = stat.permissions();
    header.uid = stat.uid.into();
    header.gid = stat.gid.into();
    if kind == Kind::Regular {
        header.size = u64::try_from(stat.size).unwrap_or(0);
    }
    // To the nearest second.
    header.mtime = stat.mod_time.saturating_add(500_000_000).div_euclid(1_000_000_000);
    header.dev_major = u32::try_from(stat.devmajor).unwrap_or(0);
    header.dev_minor = u32::try_from(stat.devminor).unwrap_or(0);
    for (key, value) in &stat.xattrs {
        header.set_xattr(key.as_bytes(), value);
    }
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Files;
    use std::sync::Arc;

    #[test]
    fn headers_say_what_files_are() {
        let stat =
            |mode, link: &str| Stat { path: "p".into(), mode, linkname: link.into(), ..Stat::default() };
        let kind = |stat: Stat| header(&stat).map(|h| h.kind);
        assert_eq!(kind(stat(0o644, "")), Some(Kind::Regular));
        assert_eq!(kind(stat(0o644, "first")), Some(Kind::HardLink));
        assert_eq!(kind(stat(mode::SYMLINK | 0o777, "x")), Some(Kind::Symlink));
        assert_eq!(kind(stat(mode::DEVICE | mode::CHAR_DEVICE, "")), Some(Kind::Character));
        assert_eq!(kind(stat(mode::SOCKET, "")), None);
        let dir =
            header(&Stat { mod_time: 1_500_000_000, ..stat(mode::DIR | mode::STICKY | 0o755, "") }).unwrap();
        assert_eq!((dir.name.as_slice(), dir.mode, dir.mtime), (&b"p/"[..], 0o1755, 2));
    }

    #[test]
    fn trees_become_archives() {
        let stat = Stat { path: "f".into(), mode: 0o600, size: 2, ..Stat::default() };
        let tree = Files(BTreeMap::from([("f".to_owned(), (stat, Arc::from(&b"hi"[..])))]));
        let mut out = Vec::new();
        write(&mut out, &tree).unwrap();
        assert_eq!((out.len(), &out[512..514]), (2048, &b"hi"[..]));
    }
}
