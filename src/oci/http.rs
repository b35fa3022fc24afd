//! HTTP as registries need it: redirects without credentials, patience with a limit, errors that name the server.
//!
//! This stands on reqwest and not on oci-client, which cannot be told where credentials may go on a redirect, does
//! not retry, resume or heed `Retry-After`, reads documents without a cap, and wants a TLS provider installed for the
//! whole process. What oci-client has its documents and references from, oci-spec, is used as it is.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE,
};
use reqwest::{Method, StatusCode, Url};
use tokio::time::{Instant, timeout_at};

use super::Error;
use super::error::{Cause, quoted};
use super::options::Options;

const MAX_REDIRECTS: usize = 10;
/// A connection that brings less than this within the no-progress timeout counts as stalled.
const LEAST_PROGRESS: u64 = 4096;
const MAX_ERROR_BODY: u64 = 64 << 10;
const FIRST_DELAY: Duration = Duration::from_millis(200);
const MAX_DELAY: Duration = Duration::from_secs(20);

/// A failure, and whether asking again may help.
pub(super) struct Fault {
    pub(super) error: Error,
    pub(super) again: bool,
    /// How long the server wants us to wait.
    pub(super) after: Option<Duration>,
}

impl From<Error> for Fault {
    /// A failure that lasts.
    fn from(error: Error) -> Fault {
        Fault { error, again: false, after: None }
    }
}

impl Fault {
    /// The connection ended too early.
    pub(super) fn broken(server: &str, reason: &'static str) -> Fault {
        Fault::passing(Error::Network { server: server.to_owned(), source: reason.into() })
    }

    fn passing(error: Error) -> Fault {
        Fault { error, again: true, after: None }
    }
}

/// Waits between tries, longer each time, and gives up in the end.
pub(super) struct Patience {
    tries: u32,
    retries: u32,
    max_wait: Duration,
}

impl Patience {
    pub(super) fn new(options: &Options) -> Patience {
        Patience { tries: 0, retries: options.retries, max_wait: options.max_wait }
    }

    /// To be called when something was achieved.
    pub(super) fn restore(&mut self) {
        self.tries = 0;
    }

    /// Returns when it is time to try again.
    ///
    /// # Errors
    /// The fault's, when there is no point in trying again.
    pub(super) async fn wait(&mut self, fault: Fault) -> Result<(), Error> {
        if !fault.again || self.tries >= self.retries {
            return Err(fault.error);
        }
        let backoff = FIRST_DELAY.saturating_mul(1 << self.tries.min(10)).min(MAX_DELAY);
        // Clients that failed together should not come back together.
        let part = crate::sys::random::u64().unwrap_or(0) % 256;
        let mut delay = backoff.mul_f64(0.75 + part as f64 / 512.0);
        if let Some(after) = fault.after {
            if after > self.max_wait {
                return Err(fault.error);
            }
            delay = after;
        }
        self.tries += 1;
        tracing::debug!(?delay, tries = self.tries, error = %fault.error, "trying again");
        tokio::time::sleep(delay).await;
        Ok(())
    }
}

/// The two ways out: as the environment's proxy variables say, and straight, for what is on this host.
pub(super) struct Http {
    proxied: reqwest::Client,
    direct: reqwest::Client,
    no_progress: Duration,
}

/// What is asked of a server.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) accept: &'a str,
    /// The value of the `Authorization` header, for the URL's origin and no other.
    pub(super) authorization: Option<HeaderValue>,
    /// Skip so many bytes.
    pub(super) from: u64,
    pub(super) form: Option<String>,
    /// The server's name in errors.
    pub(super) server: &'a str,
    /// Whether a redirect may lead to plain HTTP.
    pub(super) plain: bool,
}

/// A response whose body is read with [`Body::chunk`].
pub(super) struct Response {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// It came from where the request went and not from where a redirect led.
    pub(super) same_origin: bool,
    pub(super) body: Body,
}

pub(super) struct Body {
    response: reqwest::Response,
    server: String,
    no_progress: Duration,
    deadline: Instant,
    /// Bytes since the deadline was set.
    since: u64,
}

fn network(server: &str, error: reqwest::Error) -> Fault {
    // Its URL may be signed, which is as good as a password.
    let again = !error.is_builder();
    let error = error.without_url();
    Fault {
        again,
        after: None,
        error: Error::Network { server: server.to_owned(), source: Cause::from(error) },
    }
}

impl Http {
    pub(super) fn new(options: &Options) -> Result<Http, Error> {
        let failed = |what| move |e: Cause| Error::Host { what, source: e };
        let tls = tls().map_err(failed("set up TLS"))?;
        let builder = || {
            reqwest::Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .connect_timeout(options.no_progress)
                .user_agent(concat!("cc/", env!("CARGO_PKG_VERSION")))
        };
        let built = |builder: reqwest::ClientBuilder| {
            builder.build().map_err(|e| failed("set up HTTP")(Cause::from(e)))
        };
        Ok(Http {
            proxied: built(builder())?,
            direct: built(builder().no_proxy())?,
            no_progress: options.no_progress,
        })
    }

    /// Sends a request and follows redirects. Gives whatever answer comes in the end.
    pub(super) async fn send(&self, request: &Request<'_>) -> Result<Response, Fault> {
        let server = request.server;
        let origin = request.url.origin();
        let mut url = request.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let client = if is_loopback(&url) { &self.direct } else { &self.proxied };
            let mut builder =
                client.request(request.method.clone(), url.clone()).header(ACCEPT, request.accept);
            let same_origin = url.origin() == origin;
            if let Some(value) = request.authorization.as_ref().filter(|_| same_origin) {
                let mut value = value.clone();
                value.set_sensitive(true);
                builder = builder.header(AUTHORIZATION, value);
            }
            if request.from > 0 {
                builder = builder.header(RANGE, format!("bytes={}-", request.from));
            }
            if let Some(form) = &request.form {
                builder =
                    builder.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form.clone());
            }
            let deadline = Instant::now() + self.no_progress;
            let response = match timeout_at(deadline, builder.send()).await {
                Err(_) => return Err(self.stalled(server)),
                Ok(Err(e)) if e.is_timeout() => return Err(self.stalled(server)),
                Ok(Err(e)) => return Err(network(server, e)),
                Ok(Ok(response)) => response,
            };
            let status = response.status();
            if matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) && request.form.is_none() {
                url = self.redirect(request, &url, response.headers())?;
                continue;
            }
            return Ok(Response {
                status,
                headers: response.headers().clone(),
                same_origin,
                body: Body {
                    response,
                    server: server.to_owned(),
                    no_progress: self.no_progress,
                    deadline,
                    since: LEAST_PROGRESS,
                },
            });
        }
        let reason = format!("more than {MAX_REDIRECTS} redirects in a row");
        Err(Error::Redirect { server: server.to_owned(), reason }.into())
    }

    fn redirect(&self, request: &Request<'_>, from: &Url, headers: &HeaderMap) -> Result<Url, Error> {
        let bad = |reason: String| Error::Redirect { server: request.server.to_owned(), reason };
        let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| bad("no location is given".into()))?;
        let mut url = from.join(location).map_err(|_| bad("the location is no URL".into()))?;
        let host = url.host_str().unwrap_or_default().to_owned();
        match url.scheme() {
            "https" => {}
            "http" if from.scheme() == "http" && request.plain => {}
            scheme => return Err(bad(format!("{scheme} to {host:?} would leave encryption"))),
        }
        // Else they would be sent as credentials.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        Ok(url)
    }

    fn stalled(&self, server: &str) -> Fault {
        Fault::passing(Error::Stalled { server: server.to_owned(), timeout: self.no_progress })
    }
}

impl Response {
    /// The whole body, if it is no larger than `limit`.
    pub(super) async fn read(mut self, limit: u64, what: &str) -> Result<Vec<u8>, Fault> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.body.chunk().await? {
            if bytes.len() as u64 + chunk.len() as u64 > limit {
                return Err(Error::TooLarge { what: what.to_owned(), limit, hint: "" }.into());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// Where a partial answer begins; 0 for a whole one.
    pub(super) fn start(&self) -> Option<u64> {
        match self.status {
            StatusCode::PARTIAL_CONTENT => {
                let range = self.headers.get(CONTENT_RANGE)?.to_str().ok()?;
                range.trim().strip_prefix("bytes")?.trim().split('-').next()?.trim().parse().ok()
            }
            _ => Some(0),
        }
    }

    /// Whether it says of itself that it is a web page.
    pub(super) fn is_html(&self) -> bool {
        let kind = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        kind.trim_start().to_ascii_lowercase().starts_with("text/html")
    }

    /// The failure that a status other than success means. `image` is what was asked for.
    pub(super) async fn refusal(self, server: &str, image: &str) -> Fault {
        let (status, after) = (self.status, retry_after(&self.headers));
        let html = self.is_html();
        let body = if html { None } else { self.read(MAX_ERROR_BODY, "").await.ok() };
        let message = body.as_deref().map(registry_message).unwrap_or_default();
        let (server, image) = (server.to_owned(), image.to_owned());
        match status.as_u16() {
            401 => Error::Unauthorized { server, image, reason: "it wants a login".into() }.into(),
            403 => Error::Forbidden { server, image, message }.into(),
            404 | 410 if html => {
                Error::NotARegistry { server, what: format!("a web page (status {status})") }.into()
            }
            404 | 410 => Error::NotFound { server, image, message }.into(),
            429 => Fault { error: Error::RateLimited { server, retry_after: after }, again: true, after },
            code @ (408 | 425 | 500..=599) => {
                Fault { error: Error::Status { server, status: code, message }, again: true, after }
            }
            code => Error::Status { server, status: code, message }.into(),
        }
    }
}

impl Body {
    /// The next piece; `None` at the end of what the server said it would send.
    pub(super) async fn chunk(&mut self) -> Result<Option<bytes::Bytes>, Fault> {
        if self.since >= LEAST_PROGRESS {
            self.since = 0;
            self.deadline = Instant::now() + self.no_progress;
        }
        match timeout_at(self.deadline, self.response.chunk()).await {
            Ok(Ok(chunk)) => {
                self.since += chunk.as_ref().map_or(0, |c| c.len() as u64);
                Ok(chunk)
            }
            Ok(Err(e)) => Err(network(&self.server, e)),
            Err(_) => {
                Err(Fault::passing(Error::Stalled { server: self.server.clone(), timeout: self.no_progress }))
            }
        }
    }
}

/// `Retry-After`: seconds or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(reqwest::header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// The messages in a registry's error document.
fn registry_message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(serde::Deserialize)]
    #[serde(default)]
    #[derive(Default)]
    struct One {
        code: String,
        message: String,
    }
    let Ok(errors) = serde_json::from_slice::<Errors>(body) else { return String::new() };
    errors.errors.first().map_or_else(String::new, |one| quoted(&format!("{}: {}", one.code, one.message)))
}

pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    address.map_or(host == "localhost" || host.ends_with(".localhost"), |ip| ip.is_loopback())
}

/// TLS by rustls and ring, trusting what the host trusts, or Mozilla's list on a host without any.
fn tls() -> Result<rustls::ClientConfig, Cause> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}
