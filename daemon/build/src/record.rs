//! What is added to the record of a build after it has ended.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::History;
use crate::history::Finalizer;
use crate::traces::Recording;

/// Media type of a build's spans.
const TRACE: &str = "application/vnd.buildkit.otlp.json.v0";
/// Clients tell of their part in a build a moment after it has ended.
const PATIENCE: Duration = Duration::from_secs(3);

/// Adds the spans of a build, its own and those of its client, when the client
/// had time to send them or somebody cannot wait.
pub(crate) async fn trace(
    history: Arc<History>,
    id: String,
    recording: Recording,
    mut spans: Vec<Value>,
    finalizer: Finalizer,
) {
    tokio::select! {
        () = finalizer.asked() => {}
        () = tokio::time::sleep(PATIENCE) => {}
        _ = history.scope().cancelled() => {}
    }
    spans.extend(recording.end());
    let mut bytes = Vec::new();
    for span in spans {
        bytes.extend(base::gojson::to_vec_indent(&span).unwrap_or_default());
        bytes.push(b'\n');
    }
    let kept = async {
        let kept = history.keep(TRACE, bytes).await?;
        history.add_trace(&id, kept).await
    };
    match kept.await {
        Err(error) if error.kind() != base::Kind::NotFound => {
            tracing::warn!(%error, id, "keep the trace of a build");
        }
        // Somebody deleted the record meanwhile, or all is well.
        _ => {}
    }
}
