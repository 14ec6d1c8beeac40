//! The hosts that may have an image: mirrors first, then the registry itself.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::Client;
use rustls::pki_types::CertificateDer;
use url::Url;

use crate::config::{Config, HostConfig};
use crate::error::{Problem, tls_error};
use crate::tls;
use base::reference::DEFAULT_DOMAIN;

/// The host behind `docker.io`.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// One host and how to talk to it.
pub(crate) struct Host {
    /// Host and port.
    pub(crate) authority: String,
    /// `/v2`, or below it for mirrors with a path.
    path: String,
    /// The registry itself takes pushes, mirrors do not.
    pub(crate) push: bool,
    /// Mirrors are told which registry they stand for.
    namespace: Option<String>,
    pub(crate) client: Client,
    /// HTTPS may turn out to be HTTP.
    fallback: bool,
    /// HTTP it is.
    plain: AtomicBool,
}

impl Host {
    /// The address of `tail` in `repository`.
    pub(crate) fn url(&self, repository: &str, tail: &str) -> Result<Url, Problem> {
        let text = format!("{}://{}{}/{repository}/{tail}", self.scheme(), self.authority, self.path);
        let mut url =
            Url::parse(&text).map_err(|e| Problem::config(format!("registry address {text}: {e}")))?;
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    fn scheme(&self) -> &'static str {
        if self.plain.load(Ordering::Relaxed) { "http" } else { "https" }
    }

    /// Whether `url` is on this host.
    pub(crate) fn is_at(&self, url: &Url) -> bool {
        authority(url) == self.authority || url.authority() == self.authority
    }

    /// After `error` on `url`: whether the same should be tried over HTTP.
    pub(crate) fn falls_back(&self, url: &Url, error: &reqwest::Error) -> bool {
        let applies = self.fallback && url.scheme() == "https" && self.is_at(url);
        let wrong =
            speaks_no_tls(error) || (url.port().is_none() && (error.is_connect() || error.is_timeout()));
        if applies && wrong && !certificate_refused(error) {
            tracing::debug!(host = self.authority, "no TLS here, going on without");
            self.plain.store(true, Ordering::Relaxed);
            return true;
        }
        false
    }

    /// HTTPS turned out to be HTTP: `url` is corrected.
    pub(crate) fn correct(&self, url: &mut Url) {
        if self.fallback && self.plain.load(Ordering::Relaxed) && url.scheme() == "https" && self.is_at(url) {
            _ = url.set_scheme("http");
        }
    }
}

/// Host and, when it is not the scheme's own, port.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn speaks_no_tls(error: &reqwest::Error) -> bool {
    matches!(tls_error(error), Some(rustls::Error::InvalidMessage(_)))
}

fn certificate_refused(error: &reqwest::Error) -> bool {
    matches!(tls_error(error), Some(rustls::Error::InvalidCertificate(_)))
}

/// The hosts for `domain`, in the order in which they are asked. Reads the
/// files of the TLS settings; blocks.
pub(crate) fn hosts(
    config: &Config,
    system: &[CertificateDer<'static>],
    domain: &str,
    insecure: bool,
) -> Result<Vec<Arc<Host>>, Problem> {
    let forced = HostConfig { insecure: true, http: Some(true), ..HostConfig::default() };
    let empty = HostConfig::default();
    let of = |host: &str| config.hosts.get(host).unwrap_or(&empty);
    let own = if insecure { &forced } else { of(domain) };
    let mut hosts = Vec::new();
    for mirror in &own.mirrors {
        let (authority, path) = split_mirror(mirror);
        hosts.push(host(config, system, of(&authority), domain, authority.clone(), &path, false)?);
    }
    let authority = if domain == DEFAULT_DOMAIN { DOCKER_HUB } else { domain };
    hosts.push(host(config, system, own, domain, authority.to_owned(), "", true)?);
    Ok(hosts)
}

fn host(
    config: &Config,
    system: &[CertificateDer<'static>],
    own: &HostConfig,
    domain: &str,
    authority: String,
    path: &str,
    push: bool,
) -> Result<Arc<Host>, Problem> {
    let local = is_local(&authority);
    let http = own.http.unwrap_or(local);
    let tls = tls::client_config(system, own)?;
    let mut client = Client::builder()
        .tls_backend_preconfigured(tls)
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .user_agent(&config.user_agent)
        .connect_timeout(Duration::from_secs(30))
        .tcp_keepalive(Duration::from_secs(60))
        .pool_idle_timeout(Duration::from_secs(90))
        .pool_max_idle_per_host(config.max_concurrency.max(1));
    if local {
        client = client.no_proxy();
    }
    let client = client.build().map_err(|e| Problem::Config {
        what: format!("client for {authority}"),
        source: Some(Box::new(e)),
    })?;
    Ok(Arc::new(Host {
        path: format!("/v2{path}"),
        push,
        namespace: (!push).then(|| domain.to_owned()).filter(|d| *d != authority),
        client,
        fallback: own.insecure && http,
        plain: AtomicBool::new(http && !own.insecure),
        authority,
    }))
}

/// `[scheme://]host[:port][/path]`; the scheme is decided by the host's own settings.
fn split_mirror(mirror: &str) -> (String, String) {
    let rest = mirror.split_once("://").map_or(mirror, |(_, rest)| rest);
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    let path = if parts.is_empty() { String::new() } else { format!("/{}", parts.join("/")) };
    (authority.to_owned(), path)
}

/// This machine itself, by name or address.
pub(crate) fn is_local(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None if authority == "::1" => authority,
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_this_machine() {
        for local in
            ["localhost", "localhost:5000", "127.0.0.1", "127.1.2.3:80", "::1", "[::1]", "[::1]:5000"]
        {
            assert!(is_local(local), "{local}");
        }
        for other in ["", "localhost.lan", "10.0.0.1", "[::2]:80", "docker.io"] {
            assert!(!is_local(other), "{other}");
        }
    }

    #[test]
    fn mirrors_may_have_a_path() {
        assert_eq!(split_mirror("m.lan:5000"), ("m.lan:5000".into(), String::new()));
        assert_eq!(split_mirror("https://m.lan/a//b/"), ("m.lan".into(), "/a/b".into()));
    }

    #[test]
    fn asks_mirrors_first_and_tells_them_for_whom() {
        let mut config = Config::default();
        let mirrors = vec!["localhost:1/x".to_owned(), "docker.io".to_owned()];
        config.hosts.insert("docker.io".into(), HostConfig { mirrors, ..HostConfig::default() });
        let hosts = hosts(&config, &[], "docker.io", false).unwrap();
        let urls: Vec<String> = hosts.iter().map(|h| h.url("library/a", "blobs/x").unwrap().into()).collect();
        assert_eq!(
            urls,
            [
                "http://localhost:1/v2/x/library/a/blobs/x?ns=docker.io",
                "https://docker.io/v2/library/a/blobs/x",
                "https://registry-1.docker.io/v2/library/a/blobs/x",
            ]
        );
        assert_eq!(hosts.iter().map(|h| h.push).collect::<Vec<_>>(), [false, false, true]);
    }
}
