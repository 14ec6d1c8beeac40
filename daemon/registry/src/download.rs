//! Files by URL: the way out for sources that are not in a registry.
//!
//! The same certificates and the same name as for registries, and what only
//! downloads want: redirects are followed, as long as they lead to HTTP.

use std::net::Ipv4Addr;
use std::time::Duration;

use base::Failure;
use reqwest::redirect::Policy;
use reqwest::{Client, Url};

use crate::config::HostConfig;
use crate::host::is_local;
use crate::{Registries, tls};

/// So many redirects are followed, as in Go.
const MAX_REDIRECTS: usize = 10;
/// A server may be silent that long.
const SILENCE: Duration = Duration::from_secs(120);

/// Clients for files by URL. Clones are the same.
#[derive(Debug, Clone)]
pub struct Downloads {
    usual: Client,
    /// For what no proxy stands in front of.
    direct: Client,
}

impl Registries {
    /// Clients for files by URL. Reads the system's certificates.
    ///
    /// # Errors
    /// When the certificates cannot be made use of.
    pub async fn downloads(&self) -> Result<Downloads, Failure> {
        self.downloads_with(HostConfig::default()).await
    }

    /// Such with the certificates of `host`, too.
    ///
    /// # Errors
    /// When the certificates cannot be made use of.
    pub async fn downloads_with(&self, host: HostConfig) -> Result<Downloads, Failure> {
        let user_agent = self.0.config.user_agent.clone();
        base::task::blocking(move || {
            let failed =
                |e: &(dyn std::error::Error + 'static)| Failure::other(e).context("client for downloads");
            let tls = tls::client_config(&tls::system_roots(), &host).map_err(|problem| failed(&problem))?;
            let builder = || {
                Client::builder()
                    .tls_backend_preconfigured(tls.clone())
                    .http1_only()
                    .redirect(Policy::limited(MAX_REDIRECTS))
                    .referer(false)
                    .user_agent(&user_agent)
                    .connect_timeout(Duration::from_secs(30))
                    .read_timeout(SILENCE)
                    .tcp_keepalive(Duration::from_secs(60))
            };
            let usual = builder().build().map_err(|e| failed(&e))?;
            let direct = builder().no_proxy().build().map_err(|e| failed(&e))?;
            Ok(Downloads { usual, direct })
        })
        .await
    }
}

impl Downloads {
    /// The client for `url`.
    pub fn client(&self, url: &Url) -> &Client {
        if is_near(url.host_str().unwrap_or_default()) { &self.direct } else { &self.usual }
    }
}

/// This machine itself, or something on the same link, such as a cloud's service
/// for its machines: a proxy would ask its own.
fn is_near(host: &str) -> bool {
    is_local(host) || host.parse().is_ok_and(|ip: Ipv4Addr| ip.is_link_local())
}

#[cfg(test)]
mod tests {
    use super::is_near;

    #[test]
    fn proxies_are_for_what_is_far() {
        for (host, near) in [
            ("localhost", true),
            ("127.0.0.1", true),
            ("169.254.169.254", true),
            ("169.1.2.3", false),
            ("example.com", false),
        ] {
            assert_eq!(is_near(host), near, "{host}");
        }
    }
}
