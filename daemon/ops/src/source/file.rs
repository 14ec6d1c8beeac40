//! Results that are one file: written as its bytes come, and read again.

use std::fs::File;
use std::io::{self, Write};

use base::digest::Hasher;
use base::{Digest, Failure, Timestamp};
use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use refs::{Mutable, NewRef, Ref};
use sys::path::{Owner, Root};
use tokio::sync::mpsc;

use super::Attrs;
use crate::{Behalf, Error, Worker};

/// Pieces on their way to the disk.
const IN_FLIGHT: usize = 16;
/// What a file is called when nobody says, or says something impossible.
const NAMELESS: &str = "download";

/// The bytes of a file, in the pieces in which they arrive.
pub(crate) type Pieces = BoxStream<'static, Result<Bytes, Failure>>;

/// What a file is to look like, as attributes say it. Absent ones are zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    /// What it is to be called; empty when nothing is said.
    pub(crate) filename: String,
    /// Its permissions as they were written, which is how they are keyed.
    pub(crate) perm: i64,
    pub(crate) owner: Owner,
}

impl Shape {
    pub(crate) fn parse(attrs: &Attrs<'_>) -> Result<Self, Error> {
        let id = |key: &str| {
            let parsed = attrs.parse(key, |text| {
                u32::try_from(super::integer(text)?).map_err(|_| "not a user or group".to_owned())
            });
            Ok::<_, Error>(parsed?.unwrap_or(0))
        };
        Ok(Self {
            filename: attrs.get(llb::attr::HTTP_FILENAME).unwrap_or_default().to_owned(),
            perm: attrs.parse(llb::attr::HTTP_PERM, super::integer)?.unwrap_or(0),
            owner: Owner { uid: id(llb::attr::HTTP_UID)?, gid: id(llb::attr::HTTP_GID)? },
        })
    }

    fn mode(&self) -> u32 {
        match u32::try_from(self.perm & 0o777) {
            Ok(0) | Err(_) if self.perm == 0 => 0o600,
            mode => mode.unwrap_or(0),
        }
    }
}

/// A name that is one component of a path, whatever was given.
pub(crate) fn safe_name(text: &str) -> String {
    let name = base::gopath::base(text.trim());
    let odd = matches!(name, "" | "." | ".." | "/") || name.chars().any(char::is_control);
    if odd { NAMELESS } else { name }.to_owned()
}

/// A file to be written.
pub(crate) struct NewFile<'a> {
    /// For people, in disk usage.
    pub(crate) description: String,
    /// A safe name.
    pub(crate) name: &'a str,
    pub(crate) shape: &'a Shape,
    pub(crate) modified: Timestamp,
    /// The bytes that come are compressed, those that are written are not.
    pub(crate) gzip: bool,
}

impl NewFile<'_> {
    /// Writes what comes. The result is not committed yet, so that its digest can
    /// be refused.
    pub(crate) async fn write(
        self,
        worker: &Worker,
        mut pieces: Pieces,
        behalf: &Behalf,
    ) -> Result<(Mutable, Digest), Failure> {
        let new = NewRef { description: self.description, ..NewRef::default() };
        let mutable = worker.refs.new_mutable(None, new).await?;
        let mounted = mutable.mount().await?;
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        let (name, mode, owner) = (self.name.to_owned(), self.shape.mode(), self.shape.owner);
        let (modified, gzip, tree) = (self.modified, self.gzip, mounted.clone());
        let writer = base::task::blocking(move || {
            let root = Root::open(tree.path())?;
            let file = root.dir().create(&name, mode)?;
            let digest = take(file, receiver, gzip).map_err(|e| sys::Error::new("write", &name, e))?;
            if owner != Owner::default() {
                root.dir().chown(&name, owner)?;
                // A change of owner takes the set-id bits away, and only those.
                root.dir().chmod(&name, mode)?;
            }
            root.dir().utimens(&name, modified, modified)?;
            Ok(digest)
        });
        let feed = async {
            while let Some(piece) = pieces.next().await.transpose()? {
                if sender.send(piece).await.is_err() {
                    // The writer has gone, and has its own reason to tell.
                    break;
                }
            }
            drop(sender);
            Ok::<_, Failure>(())
        };
        let (written, fed) = behalf.scope.run(async { Ok(tokio::join!(writer, feed)) }).await?;
        mounted.unmount().await?;
        fed?;
        Ok((mutable, written?))
    }
}

/// Writes what comes through the channel. Blocks.
fn take(file: File, mut pieces: mpsc::Receiver<Bytes>, gzip: bool) -> io::Result<Digest> {
    let sink = Hashed { file, hasher: Hasher::new() };
    let done = if gzip {
        let mut decoder = MultiGzDecoder::new(sink);
        while let Some(piece) = pieces.blocking_recv() {
            decoder.write_all(&piece)?;
        }
        decoder.finish()?
    } else {
        let mut sink = sink;
        while let Some(piece) = pieces.blocking_recv() {
            sink.write_all(&piece)?;
        }
        sink
    };
    Ok(done.hasher.finish())
}

struct Hashed {
    file: File,
    hasher: Hasher,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hasher.update(bytes.get(..n).unwrap_or_default());
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Lets `read` read the file `name` of a result, off the async threads.
pub(crate) async fn read<T: Send + 'static>(
    tree: &Ref,
    name: &str,
    read: impl FnOnce(File) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let mounted = tree.mount().await?;
    let (root, name) = (mounted.path().to_owned(), name.to_owned());
    let outcome = base::task::blocking(move || read(Root::open(root)?.open_read(&name)?)).await;
    mounted.unmount().await?;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_component() {
        for (given, name) in [
            ("a", "a"),
            (" a b.jpg ", "a b.jpg"),
            ("../../etc/passwd", "passwd"),
            ("a/", "a"),
            ("..", "download"),
            ("", "download"),
            ("/", "download"),
            ("a\u{7}b", "download"),
            ("a\0", "download"),
        ] {
            assert_eq!(safe_name(given), name, "{given:?}");
        }
    }

    #[test]
    fn permissions_default_to_the_owners() {
        let mode = |perm| Shape { perm, ..Shape::default() }.mode();
        assert_eq!((mode(0), mode(0o741), mode(0o4755)), (0o600, 0o741, 0o755));
    }
}
