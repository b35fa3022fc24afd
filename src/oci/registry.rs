//! A repository of a registry, with the mirrors that are asked before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::header::HeaderValue;
use reqwest::{Method, StatusCode, Url};

use super::auth::Login;
use super::http::{Body, Fault, Http, Patience, Request, Response, is_loopback};
use super::manifest::{ACCEPT, MAX_DOCUMENT};
use super::options::Options;
use super::{Digest, Error, Reference};

/// One server that has the repository.
struct Endpoint {
    /// `https://host/v2/<repository>/`
    base: Url,
    /// The server's name in errors.
    name: String,
    plain: bool,
    login: Login,
}

/// What an image is read from.
pub(super) struct Repository {
    http: Arc<Http>,
    options: Arc<Options>,
    image: String,
    /// Mirrors, then the registry itself. Never empty.
    endpoints: Vec<Endpoint>,
    /// The one that answered last.
    preferred: AtomicUsize,
}

/// A document as it was received.
pub(super) struct Received {
    pub(super) bytes: Vec<u8>,
    pub(super) digest: Digest,
    /// Who sent it.
    pub(super) server: String,
}

impl Repository {
    pub(super) fn new(
        http: Arc<Http>,
        options: Arc<Options>,
        reference: &Reference,
    ) -> Result<Repository, Error> {
        let mut endpoints = Vec::new();
        for mirror in options.mirrors.get(reference.registry()).into_iter().flatten() {
            let (plain, rest) = match mirror.split_once("://") {
                Some(("http", rest)) => (Some(true), rest),
                Some(("https", rest)) => (Some(false), rest),
                Some(_) => {
                    return Err(Error::Option {
                        option: "mirror",
                        reason: format!("{mirror:?} is no HTTP URL"),
                    });
                }
                None => (options.plain_http.contains(mirror).then_some(true), mirror.as_str()),
            };
            let rest = rest.trim_end_matches('/');
            let host = rest.split('/').next().unwrap_or(rest).to_owned();
            let login = Login::new(host, reference, None, options.docker_config.clone());
            endpoints.push(Endpoint::new(rest, plain, reference, login, "mirror")?);
        }
        let host = reference.host();
        let plain = options.plain_http.iter().any(|name| name == reference.registry()).then_some(true);
        let login = Login::new(
            reference.registry().to_owned(),
            reference,
            options.credentials.clone(),
            options.docker_config.clone(),
        );
        endpoints.push(Endpoint::new(host, plain, reference, login, "registry")?);
        Ok(Repository {
            http,
            options,
            image: reference.to_string(),
            endpoints,
            preferred: AtomicUsize::new(0),
        })
    }

    /// Fetches a manifest or index by tag or digest. Its digest is the one asked for, or else computed.
    pub(super) async fn document(&self, target: &str, expected: Option<&Digest>) -> Result<Received, Error> {
        self.anywhere(async |endpoint| {
            let path = format!("manifests/{target}");
            self.small(endpoint, &path, ACCEPT, expected, "the description of").await
        })
        .await
    }

    /// Fetches a blob that is a document.
    pub(super) async fn small_blob(&self, digest: &Digest) -> Result<Received, Error> {
        self.anywhere(async |endpoint| {
            let path = format!("blobs/{digest}");
            self.small(endpoint, &path, "*/*", Some(digest), "the configuration of").await
        })
        .await
    }

    /// How many servers there are to ask.
    pub(super) fn servers(&self) -> usize {
        self.endpoints.len()
    }

    /// Where each server is asked.
    #[cfg(test)]
    pub(super) fn addresses(&self) -> Vec<String> {
        self.endpoints.iter().map(|endpoint| endpoint.base.to_string()).collect()
    }

    /// The name of a server, by order of preference.
    pub(super) fn name(&self, nth: usize) -> String {
        let index = (self.preferred.load(Ordering::Relaxed) + nth) % self.endpoints.len().max(1);
        self.endpoints.get(index).map_or_else(String::new, |endpoint| endpoint.name.clone())
    }

    /// Begins to read a blob from byte `from` on, from the server number `nth` in order of preference. What it gives
    /// may begin before `from`: its second part tells where.
    pub(super) async fn blob(
        &self,
        digest: &Digest,
        from: u64,
        nth: usize,
    ) -> Result<(Body, u64, String), Fault> {
        let preferred = self.preferred.load(Ordering::Relaxed);
        let endpoint = self.endpoint((preferred + nth) % self.endpoints.len().max(1))?;
        let response = self.get(endpoint, &format!("blobs/{digest}"), "*/*", from).await?;
        let start = match response.status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => response.start(),
            // Nothing lies there: begin anew, and see then what is wrong.
            StatusCode::RANGE_NOT_SATISFIABLE => {
                let response = self.get(endpoint, &format!("blobs/{digest}"), "*/*", 0).await?;
                return match response.status {
                    StatusCode::OK => Ok((response.body, 0, endpoint.name.clone())),
                    _ => Err(response.refusal(&endpoint.name, &self.image).await),
                };
            }
            _ => return Err(response.refusal(&endpoint.name, &self.image).await),
        };
        match start {
            Some(start) if start <= from => Ok((response.body, start, endpoint.name.clone())),
            _ => Err(Error::malformed(
                format!("the answer of {} for {digest}", endpoint.name),
                "it is another part than was asked for",
            )
            .into()),
        }
    }

    fn endpoint(&self, index: usize) -> Result<&Endpoint, Error> {
        self.endpoints.get(index).ok_or_else(|| self.nowhere())
    }

    fn nowhere(&self) -> Error {
        Error::NotFound { server: "no server".into(), image: self.image.clone(), message: String::new() }
    }

    /// Asks each server in turn until one has it. The error is that of the registry itself.
    async fn anywhere(
        &self,
        ask: impl AsyncFn(&Endpoint) -> Result<Received, Error>,
    ) -> Result<Received, Error> {
        let preferred = self.preferred.load(Ordering::Relaxed);
        let count = self.endpoints.len();
        let mut worst = None;
        for nth in 0..count {
            let index = (preferred + nth) % count;
            let endpoint = self.endpoint(index)?;
            match ask(endpoint).await {
                Ok(received) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(received);
                }
                // A page instead of an answer is a mistake in the set-up that should be seen.
                Err(e @ Error::NotARegistry { .. }) => return Err(e),
                Err(e) => {
                    tracing::debug!(server = %endpoint.name, error = %e, "asking the next server");
                    if worst.as_ref().is_none_or(|(of, _)| *of < index) {
                        worst = Some((index, e));
                    }
                }
            }
        }
        Err(worst.map_or_else(|| self.nowhere(), |(_, error)| error))
    }

    async fn small(
        &self,
        endpoint: &Endpoint,
        path: &str,
        accept: &str,
        expected: Option<&Digest>,
        what: &str,
    ) -> Result<Received, Error> {
        let mut patience = Patience::new(&self.options);
        loop {
            match self.small_once(endpoint, path, accept, expected, what).await {
                Ok(received) => return Ok(received),
                Err(fault) => patience.wait(fault).await?,
            }
        }
    }

    async fn small_once(
        &self,
        endpoint: &Endpoint,
        path: &str,
        accept: &str,
        expected: Option<&Digest>,
        what: &str,
    ) -> Result<Received, Fault> {
        let response = self.get(endpoint, path, accept, 0).await?;
        let server = endpoint.name.clone();
        if response.status != StatusCode::OK {
            return Err(response.refusal(&server, &self.image).await);
        }
        if response.is_html() {
            return Err(Error::NotARegistry { server, what: "a web page".into() }.into());
        }
        let named = response.headers.get("docker-content-digest").and_then(|value| value.to_str().ok());
        let named: Option<Digest> = named.and_then(|text| text.parse().ok());
        let what = format!("{what} {}", self.image);
        let bytes = response.read(MAX_DOCUMENT, &what).await?;
        let first = bytes.trim_ascii_start().first();
        if first != Some(&b'{') {
            let what = if first == Some(&b'<') { "a web page" } else { "something other than JSON" };
            return Err(Error::NotARegistry { server, what: what.into() }.into());
        }
        if let Some(expected) = expected.or(named.as_ref())
            && let Err(found) = expected.check(&bytes)
        {
            return Err(Error::Digest {
                what,
                server,
                expected: expected.to_string(),
                found: found.to_string(),
            }
            .into());
        }
        let digest = expected.or(named.as_ref()).cloned().unwrap_or_else(|| Digest::of(&bytes));
        Ok(Received { bytes, digest, server })
    }

    /// Asks one server once, logging in if it wants that.
    async fn get(&self, endpoint: &Endpoint, path: &str, accept: &str, from: u64) -> Result<Response, Fault> {
        let url = endpoint.base.join(path).map_err(|_| {
            Fault::from(Error::malformed(format!("the address of {}", self.image), "it makes no URL"))
        })?;
        let mut authorization = endpoint.login.current().await;
        for round in 0..2 {
            let request = Request {
                method: Method::GET,
                url: url.clone(),
                accept,
                authorization: authorization.as_deref().and_then(|text| HeaderValue::from_str(text).ok()),
                from,
                form: None,
                server: &endpoint.name,
                plain: endpoint.plain,
            };
            let response = self.http.send(&request).await?;
            // Where a redirect led has no business to ask for our credentials.
            if response.status != StatusCode::UNAUTHORIZED || !response.same_origin {
                return Ok(response);
            }
            if round == 1 {
                let reason = endpoint.login.refused().await;
                let (server, image) = (endpoint.name.clone(), self.image.clone());
                return Err(Error::Unauthorized { server, image, reason }.into());
            }
            let headers = response.headers;
            authorization = Some(
                endpoint
                    .login
                    .answer(&self.http, &headers, authorization.as_deref(), endpoint.plain, &self.image)
                    .await?,
            );
        }
        Err(Error::Unauthorized {
            server: endpoint.name.clone(),
            image: self.image.clone(),
            reason: "it wants a login".into(),
        }
        .into())
    }
}

impl Endpoint {
    fn new(
        address: &str,
        plain: Option<bool>,
        reference: &Reference,
        login: Login,
        option: &'static str,
    ) -> Result<Endpoint, Error> {
        let bad = |_| Error::Option { option, reason: format!("{address:?} is no address of a registry") };
        let (host, path) =
            address.split_once('/').map_or((address, String::new()), |(h, p)| (h, format!("{p}/")));
        let make = |scheme: &str| {
            Url::parse(&format!("{scheme}://{host}/{path}v2/{}/", reference.repository())).map_err(bad)
        };
        let secure = make("https")?;
        // What is on this host needs no encryption, and seldom has any.
        let plain = plain.unwrap_or_else(|| is_loopback(&secure));
        let base = if plain { make("http")? } else { secure };
        Ok(Endpoint { base, name: address.to_owned(), plain, login })
    }
}
