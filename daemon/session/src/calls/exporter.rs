//! Exporters that the client names when it has seen the result.

use std::collections::BTreeMap;

use base::Kind;
use proto::moby::exporter::v1 as wire;

use super::auth::none_if;
use super::client;
use crate::{Caller, Error};

/// How a client says that it has no part in this.
const SILENT: &[Kind] = &[Kind::Unimplemented, Kind::Unavailable];

/// An exporter the client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExporterSpec {
    /// Such as `image`.
    pub kind: String,
    /// Its attributes.
    pub attrs: BTreeMap<String, String>,
}

impl Caller {
    /// Asks which exporters a result with this metadata and these platforms'
    /// references is to go to.
    ///
    /// # Errors
    /// When the client fails. One that serves no exporters wants none.
    pub async fn find_exporters(
        &self,
        metadata: BTreeMap<String, Vec<u8>>,
        refs: Vec<String>,
    ) -> Result<Vec<ExporterSpec>, Error> {
        let mut client = client!(wire::exporter_client::ExporterClient, self);
        let request = wire::FindExportersRequest { metadata, refs };
        let answer = self.run(async { Ok(client.find_exporters(request).await?.into_inner()) }).await;
        let answer = none_if(answer, SILENT)?.unwrap_or_default();
        Ok(answer.exporters.into_iter().map(|e| ExporterSpec { kind: e.r#type, attrs: e.attrs }).collect())
    }

    /// Tells the client what the exporters answered. A client that does not
    /// want to know is left alone.
    ///
    /// # Errors
    /// When the client refuses.
    pub async fn finalize_export(&self, response: BTreeMap<String, String>) -> Result<(), Error> {
        let mut client = client!(wire::exporter_client::ExporterClient, self);
        let request = wire::FinalizeExportRequest { exporter_response: response };
        let answer = self.run(async { Ok(client.finalize_export(request).await?) }).await;
        none_if(answer, SILENT).map(drop)
    }
}
