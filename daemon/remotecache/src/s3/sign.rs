//! Amazon's signatures, version 4.

use base::{Digest, Timestamp, digest};
use reqwest::{Method, Url};

use super::login::Login;
use crate::web::{Headers, mac};

/// A request that is to be signed.
pub(super) struct Signing<'a> {
    pub(super) method: &'a Method,
    /// Encoded as it is sent; the query also sorted.
    pub(super) url: &'a Url,
    pub(super) headers: Headers,
    /// SHA-256 of the payload, in hexadecimal digits.
    pub(super) payload: &'a str,
    pub(super) time: Timestamp,
}

impl Signing<'_> {
    /// All headers, the signature among them.
    pub(super) fn headers(mut self, login: &Login, region: &str) -> Headers {
        let seconds = Timestamp::from_secs(self.time.secs()).to_string();
        let time: String = seconds.chars().filter(|c| !matches!(c, '-' | ':')).collect();
        let date = time.split('T').next().unwrap_or_default();
        self.headers.push(("x-amz-content-sha256", self.payload.to_owned()));
        self.headers.push(("x-amz-date", time.clone()));
        if !login.token.is_empty() {
            self.headers.push(("x-amz-security-token", login.token.expose().to_owned()));
        }
        let host = self.url.host_str().unwrap_or_default();
        let host = self.url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let mut signed = self.headers.clone();
        signed.push(("host", host));
        signed.sort();
        let names: Vec<&str> = signed.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let lines: String = signed.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
        let (path, query) = (self.url.path(), self.url.query().unwrap_or_default());
        let request = format!("{}\n{path}\n{query}\n{lines}\n{names}\n{}", self.method, self.payload);
        let scope = format!("{date}/{region}/s3/aws4_request");
        let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", Digest::of(request).hex());
        let key = mac(format!("AWS4{}", login.key.expose()), date);
        let key = mac(mac(mac(key, region), "s3"), "aws4_request");
        let signature = digest::hex(mac(key, &text).as_ref());
        let credential = format!("{}/{scope}", login.id);
        let authorization =
            format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={signature}");
        self.headers.push(("authorization", authorization));
        self.headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests and signatures from Amazon's own documentation of signatures for S3.
    #[test]
    fn signs_as_amazon_does() {
        let login = Login::new("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "");
        let empty = Digest::of("");
        let hello = Digest::of("Welcome to Amazon S3.");
        let said = |method: Method, path: &str, headers: Headers, payload: &Digest| {
            let url: Url = format!("https://examplebucket.s3.amazonaws.com/{path}").parse().unwrap();
            let time = Timestamp::parse("2013-05-24T00:00:00Z").unwrap();
            let signing = Signing { method: &method, url: &url, headers, payload: payload.hex(), time };
            signing.headers(&login, "us-east-1").pop().unwrap().1
        };
        let range = vec![("range", "bytes=0-9".to_owned())];
        let put = vec![
            ("date", "Fri, 24 May 2013 00:00:00 GMT".to_owned()),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY".to_owned()),
        ];
        for (method, path, headers, payload, signature) in [
            (
                Method::GET,
                "test.txt",
                range,
                &empty,
                "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
            (
                Method::PUT,
                "test%24file.text",
                put,
                &hello,
                "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
            ),
            (
                Method::GET,
                "?lifecycle=",
                Headers::new(),
                &empty,
                "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            ),
            (
                Method::GET,
                "?max-keys=2&prefix=J",
                Headers::new(),
                &empty,
                "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            ),
        ] {
            let said = said(method, path, headers, payload);
            assert!(said.ends_with(&format!("Signature={signature}")), "{path}: {said}");
        }
    }

    #[test]
    fn tokens_are_signed_too() {
        let url: Url = "http://h:9000/b/k".parse().unwrap();
        let empty = Digest::of("");
        let signing = Signing {
            method: &Method::GET,
            url: &url,
            headers: Headers::new(),
            payload: empty.hex(),
            time: Timestamp::EPOCH,
        };
        let headers = signing.headers(&Login::new("id", "key", "token"), "r");
        assert!(headers.contains(&("x-amz-security-token", "token".to_owned())));
        let said = &headers.last().unwrap().1;
        assert!(
            said.contains("SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token,"),
            "{said}"
        );
        assert!(said.contains("Credential=id/19700101/r/s3/aws4_request"), "{said}");
    }
}
