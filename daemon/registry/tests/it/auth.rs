//! Who gets which token, and who never sees one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use axum::http::Method;
use axum::response::Response;
use base::failure::Classify;
use base::{Failure, Kind, Secret};
use registry::{Access, Credentials, Login, Registries, Token, TokenRequest};

use crate::mock::{Mock, Seen, answer, blob, config};

/// A registry behind tokens: `Bearer good-SCOPE` opens everything.
async fn guarded(realm: String) -> Mock {
    Mock::start(move |seen| {
        let realm = realm.clone();
        async move {
            if seen.header("authorization").starts_with("Bearer good") {
                return answer(200, &[], "x");
            }
            let repository = seen.path.split("/blobs").next().unwrap_or_default().trim_start_matches("/v2/");
            let challenge = format!(
                "Bearer realm=\"http://{realm}/token\",service=\"reg\",scope=\"repository:{repository}:pull\""
            );
            answer(
                401,
                &[("www-authenticate", &challenge)],
                r#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}"#,
            )
        }
    })
    .await
}

async fn token_server(make: impl Fn(&Seen) -> Response + Clone + Send + Sync + 'static) -> Mock {
    Mock::start(move |seen| {
        let response = make(&seen);
        async move { response }
    })
    .await
}

#[derive(Default)]
struct Keys {
    authority: Option<[u8; 32]>,
    login: Option<(String, String)>,
    token: String,
    asked: Mutex<Vec<String>>,
}

impl Keys {
    fn login(user: &str, secret: &str) -> Arc<Self> {
        Arc::new(Self { login: Some((user.into(), secret.into())), ..Self::default() })
    }
}

#[async_trait]
impl Credentials for Keys {
    async fn authority(&self, host: &str) -> Result<Option<[u8; 32]>, Failure> {
        self.asked.lock().unwrap().push(format!("authority {host}"));
        Ok(self.authority)
    }

    async fn login(&self, host: &str) -> Result<Option<Login>, Failure> {
        self.asked.lock().unwrap().push(format!("login {host}"));
        Ok(self
            .login
            .as_ref()
            .map(|(user, secret)| Login { user: user.clone(), secret: Secret::new(secret) }))
    }

    async fn fetch_token(&self, request: &TokenRequest) -> Result<Token, Failure> {
        self.asked.lock().unwrap().push(format!("token {} {}", request.service, request.scopes.join(" ")));
        Ok(Token { token: Secret::new(&self.token), expires_in: 0, issued_at: None })
    }
}

#[tokio::test]
async fn nobody_gets_a_token_for_nobody_once() {
    let tokens = token_server(|_| answer(200, &[], r#"{"token":"good","expires_in":300}"#)).await;
    let mock = guarded(tokens.host.clone()).await;
    let registries = Registries::new(config());
    for _ in 0..2 {
        let repository = mock.repository_for(&registries, &Access::anonymous()).await;
        let desc = blob(b"x");
        let (a, b, c) =
            tokio::join!(repository.fetch(&desc), repository.fetch(&desc), repository.fetch(&desc));
        a.and(b).and(c).unwrap();
    }
    let seen = tokens.seen();
    assert_eq!(seen.len(), 1, "single flight, and remembered");
    assert_eq!(seen[0].param("service").unwrap(), "reg");
    assert_eq!(seen[0].param("scope").unwrap(), "repository:a/b:pull");
    assert_eq!(seen[0].header("authorization"), "");
}

#[tokio::test]
async fn a_login_goes_to_the_realm_and_not_to_the_registry() {
    let tokens = token_server(|_| answer(200, &[], r#"{"access_token":"good","token":"x"}"#)).await;
    let mock = guarded(tokens.host.clone()).await;
    let keys = Keys::login("me", "pw");
    let repository = mock.repository_for(&Registries::new(config()), &Access::new(keys.clone())).await;
    repository.fetch(&blob(b"x")).await.unwrap();
    assert_eq!(tokens.seen()[0].header("authorization"), "Basic bWU6cHc=");
    let headers: Vec<_> = mock.seen().iter().map(|s| s.header("authorization").to_owned()).collect();
    assert_eq!(headers, ["", "Bearer good"]);
    assert_eq!(
        *keys.asked.lock().unwrap(),
        [format!("authority {}", mock.host), format!("login {}", mock.host)]
    );
}

#[tokio::test]
async fn some_realms_want_a_form() {
    for (user, refusal, form) in [
        ("me", 405, "grant_type=password&username=me&password=p+w"),
        ("", 401, "grant_type=refresh_token&refresh_token=p+w"),
    ] {
        let tokens = token_server(move |seen| match seen.method {
            Method::POST => answer(200, &[], r#"{"access_token":"good"}"#),
            _ => answer(refusal, &[], ""),
        })
        .await;
        let mock = guarded(tokens.host.clone()).await;
        let access = Access::new(Keys::login(user, "p w"));
        mock.repository_for(&Registries::new(config()), &access).await.fetch(&blob(b"x")).await.unwrap();
        let seen = tokens.seen();
        let sent = String::from_utf8(seen[1].body.to_vec()).unwrap();
        assert_eq!(
            sent,
            format!("scope=repository%3Aa%2Fb%3Apull&service=reg&client_id=buildkit-client&{form}")
        );
    }
}

#[tokio::test]
async fn an_authority_makes_the_token_itself() {
    let mock = guarded("nowhere.invalid".into()).await;
    let registries = Registries::new(config());
    let with = |key, token: &str| {
        Arc::new(Keys { authority: Some([key; 32]), token: token.into(), ..Keys::default() })
    };
    let (first, same, other) = (with(1, "good1"), with(1, "unused"), with(2, "good2"));
    for keys in [&first, &same, &other] {
        let repository = mock.repository_for(&registries, &Access::new((*keys).clone())).await;
        repository.fetch(&blob(b"x")).await.unwrap();
    }
    let last = |keys: &Keys| keys.asked.lock().unwrap().last().unwrap().clone();
    assert_eq!(last(&first), "token reg repository:a/b:pull");
    assert_eq!(last(&same), format!("authority {}", mock.host), "the same authority shares the token");
    assert_eq!(last(&other), "token reg repository:a/b:pull");
    let used: Vec<_> = mock.seen().iter().map(|s| s.header("authorization").to_owned()).collect();
    assert_eq!(used, ["", "Bearer good1", "Bearer good1", "Bearer good2"]);
}

#[tokio::test]
async fn a_refused_token_is_replaced_once_and_the_refusal_told() {
    let count = Arc::new(AtomicUsize::new(0));
    let tokens = token_server(move |_| {
        let n = count.fetch_add(1, Ordering::SeqCst);
        answer(200, &[], format!(r#"{{"token":"bad{n}"}}"#))
    })
    .await;
    let mock = guarded(tokens.host.clone()).await;
    let access = Access::new(Keys::login("me", "pw"));
    let repository = mock.repository_for(&Registries::new(config()), &access).await;
    let error = repository.fetch(&blob(b"x")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthenticated);
    let text = error.to_string();
    assert!(text.contains("UNAUTHORIZED: who are you") && !text.contains("no credentials"), "{text}");
    assert_eq!((mock.seen().len(), tokens.seen().len()), (2, 1), "a fresh token is not worth replacing");
}

#[tokio::test]
async fn what_is_no_token_is_an_error_that_says_so() {
    for (status, body, part) in [
        (200, "{}", "did not include a token"),
        (200, "<html>", "token answer"),
        (200, "{\"token\":\"a\\nb\"}", "characters"),
        (503, "{\"details\":\"closed\"}", "503 Service Unavailable: closed"),
    ] {
        let tokens = token_server(move |_| answer(status, &[], body)).await;
        let mock = guarded(tokens.host.clone()).await;
        let error = Failure::from(mock.repository().await.fetch(&blob(b"x")).await.unwrap_err()).to_string();
        assert!(error.contains("failed to fetch anonymous token") && error.contains(part), "{part}: {error}");
    }
    for realm in ["", "x\",service=\"y", "nowhere.invalid:99999"] {
        let mock = guarded(realm.into()).await;
        mock.repository().await.fetch(&blob(b"x")).await.unwrap_err();
    }
}

#[tokio::test]
async fn a_password_is_sent_only_where_it_is_asked_for() {
    let other = Mock::start(|_| async { answer(200, &[], "x") }).await;
    let there = other.host.clone();
    let mock = Mock::start(move |seen| {
        let there = there.clone();
        async move {
            match seen.header("authorization") {
                "" => answer(401, &[("www-authenticate", "Basic realm=x")], ""),
                _ => answer(307, &[("location", &format!("http://{there}/elsewhere"))], ""),
            }
        }
    })
    .await;
    let access = Access::new(Keys::login("me", "pw"));
    mock.repository_for(&Registries::new(config()), &access).await.fetch(&blob(b"x")).await.unwrap();
    assert_eq!(mock.seen()[1].header("authorization"), "Basic bWU6cHc=");
    assert_eq!(other.seen()[0].header("authorization"), "");

    let anonymous = mock.repository().await.fetch(&blob(b"x")).await.unwrap_err();
    assert!(anonymous.to_string().contains("no credentials were used"), "{anonymous}");
}
