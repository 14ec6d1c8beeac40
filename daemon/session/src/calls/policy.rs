//! The client's say on sources.

use proto::moby::buildkit::v1::sourcepolicy::policysession as wire;

use super::client;
use crate::{Caller, Error};

impl Caller {
    /// Asks the client about a source. Request and answer stay in the form of
    /// the wire: they are made of gateway messages, which `build` handles.
    ///
    /// # Errors
    /// When the client fails, or serves no policy.
    pub async fn check_policy(
        &self,
        request: wire::CheckPolicyRequest,
    ) -> Result<wire::CheckPolicyResponse, Error> {
        let mut client = client!(wire::policy_verifier_client::PolicyVerifierClient, self);
        self.run(async { Ok(client.check_policy(request).await?.into_inner()) }).await
    }
}
