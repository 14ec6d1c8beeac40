//! Questions about a Dockerfile that are answered without building it.

use base::failure::{Detail, SourceExcerpt};
use base::{Failure, Kind};
use prost::Message;

use super::build::convert_and_warn;
use super::{Options, convert};
use crate::dockerfile::subrequests::{self, Answer, id, lint::Report, targets};
use crate::dockerui::Source;
use crate::gateway::FrontendResult;

/// Answers `request`.
pub(super) async fn answer(
    request: &str,
    options: &Options,
    source: &Source,
) -> Result<FrontendResult, Failure> {
    let answer = match request {
        id::DESCRIBE => subrequests::describe(),
        id::TARGETS => targets::list(&options.source.data)?.answer(),
        id::OUTLINE => {
            let converted = convert_and_warn(options, source).await;
            converted.map_err(|e| e.failure)?.outline.answer()
        }
        id::LINT => lint(options).await,
        id::CONVERT => return definition(options, source).await,
        other => {
            let text = format!("unsupported request {other}");
            let failure = Failure::new(Kind::Unimplemented, text);
            return Err(failure.with(Detail::Subrequest(other.to_owned())));
        }
    };
    let metadata = answer.metadata().into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    Ok(FrontendResult { metadata, ..FrontendResult::default() })
}

/// Without a target all stages are looked at.
async fn lint(options: &Options) -> Answer {
    let all_stages = options.client.config().target.is_empty();
    let options = Options { all_stages, lint: true, ..options.clone() };
    let (converted, warnings) = convert(&options).await;
    let error = converted.err();
    let error = error.as_ref().map(|e| (e.failure.to_string(), e.places.as_slice()));
    let map = &options.source;
    let file = SourceExcerpt {
        filename: map.filename.clone(),
        language: map.language.clone(),
        data: map.data.clone(),
        definition: map.definition.as_ref().map(Message::encode_to_vec),
        ranges: Vec::new(),
    };
    Report::new(file, &warnings, error).answer()
}

async fn definition(options: &Options, source: &Source) -> Result<FrontendResult, Failure> {
    let converted = convert_and_warn(options, source).await.map_err(|e| e.failure)?;
    let definition = converted.state.marshal(&converted.defaults)?;
    let json = llb::dump::document(&definition)?;
    let metadata = [("result.json", json), ("version", b"0.1.0".to_vec())];
    let metadata = metadata.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    Ok(FrontendResult { metadata, ..FrontendResult::default() })
}
