//! One request: where it goes, whether it may, and what comes back.

use base::gourl::{self, redacted};
use http::header::{
    ACCEPT_ENCODING, CONNECTION, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, RANGE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request as HttpRequest, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;

use crate::Terms;
use crate::body::{Answer, Note, Passed};
use crate::capture::{Incomplete, Request};
use crate::upstream::Sender;

/// Headers that are about one connection and end with it.
const HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Where requests of a connection go.
pub(crate) enum Origin {
    /// Wherever each of them says.
    Any,
    /// To this server, with TLS.
    Tunnel(Authority),
}

/// Passes requests on, on the terms of one step.
pub(crate) struct Relay {
    pub(crate) terms: Terms,
    pub(crate) sender: Sender,
}

fn say(status: StatusCode, text: impl Into<String>) -> Response<Answer> {
    let mut response = Response::new(Answer::text(format!("{}\n", text.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

impl Relay {
    /// The server a tunnel is asked for to, if one is; or why there is none.
    pub(crate) fn tunnel(
        &self,
        request: &HttpRequest<Incoming>,
        origin: &Origin,
    ) -> Option<Result<Authority, Response<Answer>>> {
        if request.method() != Method::CONNECT {
            return None;
        }
        Some(match (origin, request.uri().authority()) {
            (Origin::Any, Some(to)) if !to.host().is_empty() && !to.as_str().contains('@') => Ok(to.clone()),
            (Origin::Any, _) => Err(say(StatusCode::BAD_REQUEST, "no server to connect to")),
            (Origin::Tunnel(_), _) => Err(say(StatusCode::METHOD_NOT_ALLOWED, "a tunnel within a tunnel")),
        })
    }

    /// The answer that opens a tunnel.
    pub(crate) fn opened(&self) -> Response<Answer> {
        let mut response = Response::new(Answer::text(""));
        response.extensions_mut().insert(ReasonPhrase::from_static(b"Connection Established"));
        response
    }

    /// Fetches what is asked for, if it may be fetched.
    pub(crate) async fn pass(&self, mut request: HttpRequest<Incoming>, origin: &Origin) -> Response<Answer> {
        let Some(asked) = target(&request, origin) else {
            return say(StatusCode::BAD_REQUEST, "no server to send this to");
        };
        let uri = match self.check(request.method(), asked).await {
            Ok(uri) => uri,
            Err(reason) => {
                tracing::debug!(reason, "request of a step refused");
                return say(StatusCode::FORBIDDEN, "Forbidden");
            }
        };
        let (method, url) = (request.method().clone(), shown(&uri.to_string()));
        let range = request.headers().get(RANGE).is_some_and(|range| !range.is_empty());
        let Some(host) = ready(&mut request, uri.clone()) else {
            return say(StatusCode::BAD_REQUEST, "no server to send this to");
        };
        request.headers_mut().insert(HOST, host);
        match self.sender.request(request).await {
            Ok(response) if response.status().is_informational() => {
                self.failed(method, url, "the server changed the protocol")
            }
            Ok(response) => self.answer(method, url, range, &uri, response),
            Err(error) => self.failed(method, url, base::Failure::other(&error).to_string()),
        }
    }

    /// What to fetch in place of `asked`, or why nothing.
    async fn check(&self, method: &Method, asked: Uri) -> Result<Uri, String> {
        let Some(policy) = &self.terms.policy else { return Ok(asked) };
        let told = redacted(&asked.to_string());
        let wanted = policy.check(&told).await.map_err(|e| e.to_string())?;
        if wanted == told {
            return Ok(asked);
        }
        if *method != Method::GET {
            return Err(format!("{told} would be another, which only GET can be"));
        }
        match wanted.parse::<Uri>() {
            Ok(uri) if uri.scheme().is_some_and(|s| *s == Scheme::HTTP || *s == Scheme::HTTPS) => Ok(uri),
            _ => Err(format!("{told} would be {}, which is no URL of a server", redacted(&wanted))),
        }
    }

    fn failed(&self, method: Method, url: String, reason: impl Into<String>) -> Response<Answer> {
        const STATUS: StatusCode = StatusCode::BAD_GATEWAY;
        if let Some(capture) = &self.terms.capture {
            let method = method.to_string();
            let request = Request {
                method: method.clone(),
                url: url.clone(),
                redirect: String::new(),
                status: STATUS.as_u16(),
            };
            capture.request(request);
            capture.incomplete_request(Incomplete { method, url, reason: "upstream_error" });
        }
        say(STATUS, reason)
    }

    fn answer(
        &self,
        method: Method,
        url: String,
        range: bool,
        asked: &Uri,
        response: Response<Incoming>,
    ) -> Response<Answer> {
        let (mut parts, body) = response.into_parts();
        let status = parts.status;
        let note = self.terms.capture.as_ref().map(|capture| {
            capture.request(Request {
                method: method.to_string(),
                url: url.clone(),
                redirect: redirect(asked, &parts.headers),
                status: status.as_u16(),
            });
            Note { capture: capture.clone(), method, url, range, status }
        });
        strip(&mut parts.headers);
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        Response::from_parts(parts, Answer::Passed(Passed::new(body, note)))
    }
}

/// The whole URL that is asked for.
fn target(request: &HttpRequest<Incoming>, origin: &Origin) -> Option<Uri> {
    let uri = request.uri();
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let whole = |scheme: Scheme, authority: Authority| {
        Uri::builder().scheme(scheme).authority(authority).path_and_query(path.clone()).build().ok()
    };
    match (origin, uri.scheme(), uri.authority()) {
        (Origin::Tunnel(server), ..) => whole(Scheme::HTTPS, server.clone()),
        (Origin::Any, Some(scheme), Some(server)) => whole(scheme.clone(), server.clone()),
        (Origin::Any, ..) => {
            let host = request.headers().get(HOST)?.to_str().ok()?;
            whole(Scheme::HTTP, host.parse().ok()?)
        }
    }
}

/// Makes a request ready to be sent to the server of `uri`, and gives that
/// server's name for its head. It is always the one that was looked at: a name
/// of the step's own choice would lead elsewhere behind some servers.
fn ready(request: &mut HttpRequest<Incoming>, uri: Uri) -> Option<HeaderValue> {
    let authority = uri.authority()?;
    let server = authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_, server)| server);
    let server: Authority = server.parse().ok()?;
    let usual = match uri.scheme_str() {
        Some("http") => Some(80),
        Some("https") => Some(443),
        _ => None,
    };
    let name = if server.port_u16().is_some() && server.port_u16() == usual {
        server.host()
    } else {
        server.as_str()
    };
    let name = HeaderValue::from_str(name).ok()?;
    let mut parts = uri.into_parts();
    parts.authority = Some(server);
    *request.uri_mut() = Uri::from_parts(parts).ok()?;
    *request.version_mut() = Version::HTTP_11;
    request.extensions_mut().clear();
    let headers = request.headers_mut();
    strip(headers);
    // Bodies are to be hashed as they are, and are never held back.
    headers.remove(ACCEPT_ENCODING);
    headers.remove(EXPECT);
    Some(name)
}

/// Takes away what is only about one connection.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

/// An address as it is told: without credentials and without the usual port.
fn shown(text: &str) -> String {
    let Ok(mut url) = gourl::Url::parse(text) else { return redacted(text) };
    let usual = match url.scheme.as_str() {
        "http" => ":80",
        "https" => ":443",
        _ => "",
    };
    if let Some(bare) = url.host.strip_suffix(usual) {
        url.host = bare.to_owned();
    }
    redacted(&url.to_string())
}

/// Where an answer sends the client.
fn redirect(asked: &Uri, headers: &HeaderMap) -> String {
    let Some(location) = headers.get(LOCATION).and_then(|l| l.to_str().ok()).filter(|l| !l.is_empty()) else {
        return String::new();
    };
    let whole = url::Url::parse(&asked.to_string()).and_then(|asked| asked.join(location));
    shown(&whole.map_or_else(|_| location.to_owned(), String::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_without_what_goes_without_saying() {
        for (given, told) in [
            ("http://a:80/x?y=1", "http://a/x?y=1"),
            ("https://a:443/", "https://a/"),
            ("https://a:80/", "https://a:80/"),
            ("https://u:p@a:443/x", "https://xxxxx:xxxxx@a/x"),
            ("http://[::1]:80/", "http://[::1]/"),
            ("http://[::1]:8080/a%2fb", "http://[::1]:8080/a%2fb"),
        ] {
            assert_eq!(shown(given), told);
        }
    }

    #[test]
    fn headers_of_one_connection_stay_behind() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("connection", "close, X-Mine"), ("x-mine", "1"), ("upgrade", "websocket"), ("x-other", "2")]
        {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-other"]);
    }

    #[test]
    fn redirects_may_be_relative() {
        let asked: Uri = "http://a:80/x/y".parse().unwrap();
        for (location, to) in
            [("z", "http://a/x/z"), ("https://b:443/q", "https://b/q"), ("//c/d", "http://c/d"), ("", "")]
        {
            let mut headers = HeaderMap::new();
            headers.insert(LOCATION, HeaderValue::from_static(location));
            assert_eq!(redirect(&asked, &headers), to);
        }
    }
}
