//! Logging in to a server: anonymous tokens, Basic, Bearer, and identity tokens.
//!
//! A login is found out from the server's challenge and kept for the pull. When the server refuses what was good
//! before, because a token has expired, the next challenge is answered anew.

use std::path::PathBuf;
use std::time::Duration;

use http_auth::parser::ChallengeParser;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, StatusCode, Url};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::credentials::{self, Credentials};
use super::http::{Fault, Http, Request};
use super::{Error, Reference};

const MAX_TOKEN: u64 = 1 << 20;
/// What the specification says of tokens without a lifetime.
const LIFETIME: u64 = 60;

/// What one server thinks of us.
pub(super) struct Login {
    registry: String,
    scope: String,
    given: Option<Credentials>,
    docker_config: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// `None` until they are needed.
    credentials: Option<Option<Credentials>>,
    authorization: Option<String>,
    until: Option<Instant>,
}

/// The part of a challenge that counts.
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

#[derive(serde::Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Login {
    /// `registry` is the name that credentials are stored under.
    pub(super) fn new(
        registry: String,
        reference: &Reference,
        given: Option<Credentials>,
        docker_config: Option<PathBuf>,
    ) -> Login {
        let scope = format!("repository:{}:pull", reference.repository());
        Login { registry, scope, given, docker_config, state: Mutex::default() }
    }

    /// The `Authorization` to send, if one is known to be good.
    pub(super) async fn current(&self) -> Option<String> {
        let mut state = self.state.lock().await;
        if state.until.is_some_and(|until| until <= Instant::now()) {
            state.authorization = None;
            state.until = None;
        }
        state.authorization.clone()
    }

    /// Forgets what the server refused; says in words what that was.
    pub(super) async fn refused(&self) -> String {
        let mut state = self.state.lock().await;
        state.authorization = None;
        state.until = None;
        match &state.credentials {
            Some(Some(_)) => "it refuses the credentials it was given".into(),
            _ => "it does not let in those who are not logged in".into(),
        }
    }

    /// Answers a challenge. `sent` is what the server refused.
    pub(super) async fn answer(
        &self,
        http: &Http,
        headers: &HeaderMap,
        sent: Option<&str>,
        plain: bool,
        image: &str,
    ) -> Result<String, Fault> {
        // Whoever comes first logs in for all.
        let mut state = self.state.lock().await;
        if let Some(authorization) = state.authorization.as_deref().filter(|&now| Some(now) != sent) {
            return Ok(authorization.to_owned());
        }
        state.authorization = None;
        state.until = None;
        let refuse = |reason: String| -> Fault {
            Error::Unauthorized { server: self.registry.clone(), image: image.to_owned(), reason }.into()
        };
        if state.credentials.is_none() {
            state.credentials = Some(self.find().await?);
        }
        let credentials = state.credentials.clone().flatten();
        let authorization = match challenge(headers) {
            None => return Err(refuse("it does not say how to log in".into())),
            Some(Challenge::Basic) => {
                let basic = credentials.as_ref().and_then(Credentials::basic);
                let basic = basic.ok_or_else(|| refuse("it wants a user and a password".into()))?;
                if sent == Some(basic.as_str()) {
                    return Err(refuse("it refuses the credentials it was given".into()));
                }
                basic
            }
            Some(Challenge::Bearer { realm, service, scope }) => {
                let scope = scope.unwrap_or_else(|| self.scope.clone());
                let token = self
                    .token(http, &realm, service.as_deref(), &scope, credentials.as_ref(), plain, image)
                    .await?;
                let lifetime = token.expires_in.unwrap_or(LIFETIME).clamp(1, 24 * 3600);
                // A moment early, so that it does not expire on its way.
                state.until = Some(Instant::now() + Duration::from_secs(lifetime).mul_f64(0.9));
                let token = token.token.filter(|t| !t.is_empty()).or(token.access_token);
                let token = token.ok_or_else(|| refuse("the server that gives tokens gave none".into()))?;
                format!("Bearer {token}")
            }
        };
        state.authorization = Some(authorization.clone());
        Ok(authorization)
    }

    /// A helper program may take its time, so it is asked on a thread that may block.
    async fn find(&self) -> Result<Option<Credentials>, Error> {
        if let Some(given) = &self.given {
            return Ok(Some(given.clone()));
        }
        let Some(dir) = self.docker_config.clone() else { return Ok(None) };
        let registry = self.registry.clone();
        match tokio::task::spawn_blocking(move || credentials::stored(&dir, &registry)).await {
            Ok(found) => found,
            Err(_) => Ok(None),
        }
    }

    #[allow(clippy::too_many_arguments)]
    async fn token(
        &self,
        http: &Http,
        realm: &str,
        service: Option<&str>,
        scope: &str,
        credentials: Option<&Credentials>,
        plain: bool,
        image: &str,
    ) -> Result<Token, Fault> {
        let bad = |reason: &str| Error::malformed(format!("the challenge of {}", self.registry), reason);
        let mut url = Url::parse(realm).map_err(|_| bad("its realm is no URL"))?;
        let host = url.host_str().unwrap_or_default().to_owned();
        // A password must not leave encryption because the registry says so.
        if url.scheme() != "https" && !(url.scheme() == "http" && plain) {
            return Err(bad("its realm is without encryption").into());
        }
        let _ = url.set_username("");
        let _ = url.set_password(None);
        let mut fields = vec![("scope", scope), ("client_id", "cc")];
        fields.extend(service.map(|service| ("service", service)));
        let mut authorization = None;
        let mut form = None;
        match credentials {
            Some(Credentials::Identity(token)) => {
                fields.extend([("grant_type", "refresh_token"), ("refresh_token", token)]);
                // Written by the URL's own serialiser: the rules are the same.
                let mut encoder = url.clone();
                encoder.set_query(None);
                encoder.query_pairs_mut().extend_pairs(fields);
                form = Some(encoder.query().unwrap_or_default().to_owned());
            }
            credentials => {
                url.query_pairs_mut().extend_pairs(fields);
                authorization = credentials.and_then(Credentials::basic);
            }
        }
        let request = Request {
            method: if form.is_some() { Method::POST } else { Method::GET },
            url,
            accept: "application/json",
            authorization: authorization.as_deref().and_then(|text| HeaderValue::from_str(text).ok()),
            from: 0,
            form,
            server: &host,
            plain,
        };
        let response = http.send(&request).await?;
        match response.status {
            StatusCode::OK => {}
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let reason = match credentials {
                    Some(_) => format!(
                        "{host}, where it sends those who log in, refuses the credentials it was given"
                    ),
                    None => format!("{host}, where it sends those who log in, wants credentials"),
                };
                let (server, image) = (self.registry.clone(), image.to_owned());
                return Err(Error::Unauthorized { server, image, reason }.into());
            }
            _ => return Err(response.refusal(&host, "a token").await),
        }
        if response.is_html() {
            return Err(Error::NotARegistry { server: host, what: "a web page".into() }.into());
        }
        let bytes = response.read(MAX_TOKEN, "a token").await?;
        // What the parser says could quote the token.
        serde_json::from_slice(&bytes)
            .map_err(|_| Error::malformed(format!("a token from {host}"), "no JSON").into())
    }
}

/// The best challenge that is understood.
fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let mut basic = None;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Ok(text) = value.to_str() else { continue };
        for challenge in ChallengeParser::new(text).filter_map(Result::ok) {
            let parameter = |name: &str| {
                let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped()).filter(|value| !value.is_empty())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                if let Some(realm) = parameter("realm") {
                    return Some(Challenge::Bearer {
                        realm,
                        service: parameter("service"),
                        scope: parameter("scope"),
                    });
                }
            } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}
