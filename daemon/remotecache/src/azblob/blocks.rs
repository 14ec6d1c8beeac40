//! Layers as Azure's block blobs: a small one at once, a large one in blocks and a
//! list of them.

use base::Failure;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::Response;
use store::Pin;

use crate::web::{self, Headers, PARTS_AT_ONCE, Part, Payload, Refusal, encode};

/// The kind of blobs that are written.
pub(crate) const BLOCK_BLOB: (&str, &str) = ("x-ms-blob-type", "BlockBlob");
/// Blocks of one blob, at most.
const MAX_BLOCKS: u64 = 50_000;

/// Sends a layer with `put`, which is given a query, a payload and headers. What
/// the service refuses is told apart from what goes wrong on the way.
///
/// # Errors
/// When there is no answer.
pub(crate) async fn send<F, R>(
    layer: &Pin,
    conditions: Headers,
    put: F,
) -> Result<Result<(), Refusal>, Failure>
where
    F: Fn(Option<String>, Payload, Headers) -> R,
    R: Future<Output = Result<Response, Failure>>,
{
    let parts = Part::of(layer, MAX_BLOCKS);
    if parts.len() == 1 {
        let mut headers = conditions;
        headers.push((BLOCK_BLOB.0, BLOCK_BLOB.1.to_owned()));
        let answer = put(None, Payload::Part(Part::whole(layer)), headers).await?;
        return Ok(web::success(answer).await.map(drop));
    }
    // All names of blocks are of one length.
    let ids: Vec<String> = (0..parts.len()).map(|n| STANDARD.encode(format!("{n:08}"))).collect();
    let work = parts.into_iter().zip(&ids).map(|(part, id)| {
        put(Some(format!("comp=block&blockid={}", encode(id, ""))), Payload::Part(part), Headers::new())
    });
    let work: Vec<_> = work.collect();
    let answers: Vec<Response> = stream::iter(work).buffered(PARTS_AT_ONCE).try_collect().await?;
    for answer in answers {
        if let Err(refusal) = web::success(answer).await {
            return Ok(Err(refusal));
        }
    }
    let list: String = ids.iter().map(|id| format!("<Latest>{id}</Latest>")).collect();
    let list = format!("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>{list}</BlockList>");
    let answer = put(Some("comp=blocklist".to_owned()), Payload::Bytes(list.into()), conditions).await?;
    Ok(web::success(answer).await.map(drop))
}
