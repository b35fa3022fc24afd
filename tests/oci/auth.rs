//! Logins, and where credentials must not go.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cc::oci::Error;

use crate::support::images::Image;
use crate::support::proxy::{Action, Proxy, Request};
use crate::support::registry::{PASSWORD, Registry, USER};
use crate::support::{alone, client_in, scratch, text};

const BASIC: &str = "Basic YWxpOm9wZW4gc2VzYW1l";
const ENCODED: &str = "YWxpOm9wZW4gc2VzYW1l";

/// Every way to look at an error.
fn words(error: &Error) -> String {
    let mut text = format!("{error} {error:?} {error:#?}");
    let mut cause = std::error::Error::source(error);
    while let Some(below) = cause {
        text.push_str(&format!(" {below} {below:?}"));
        cause = below.source();
    }
    text
}

fn assert_hidden(text: &str) {
    for secret in [PASSWORD, ENCODED, "token-"] {
        assert!(!text.contains(secret), "{secret:?} is in {text}");
    }
}

#[test]
fn r6_2_basic_from_options_and_from_docker_config() {
    let registry = Registry::with_login();
    let reference = registry.push(&Image::small("in"), "app:1");
    let pull = |f: &dyn Fn(cc::oci::ClientBuilder) -> cc::oci::ClientBuilder| {
        let dir = scratch();
        f(client_in(dir.path())).build().unwrap().pull(&reference)
    };
    assert_eq!(text(&pull(&|c| c.credentials(USER, PASSWORD)).unwrap()), "in");

    let error = pull(&|c| c).unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    assert!(error.to_string().contains("docker login"), "{error}");
    let error = pull(&|c| c.credentials(USER, "token-wrong")).unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    assert_hidden(&words(&error));
    assert_hidden(&format!("{:?}", client_in(scratch().path()).credentials(USER, PASSWORD)));
    assert_hidden(&format!(
        "{:#?}",
        client_in(scratch().path()).credentials(USER, PASSWORD).build().unwrap()
    ));

    // What docker login leaves, in its forms.
    let address = registry.address();
    let configs = [
        format!(r#"{{"auths": {{"{address}": {{"auth": "{ENCODED}"}}}}}}"#),
        format!(
            r#"{{"auths": {{"https://{address}/v1/": {{"username": "{USER}", "password": "{PASSWORD}"}}}}}}"#
        ),
    ];
    for config in configs {
        let docker = scratch();
        std::fs::write(docker.path().join("config.json"), &config).unwrap();
        let docker = docker.path().to_owned();
        assert_eq!(text(&pull(&|c| c.docker_config(Some(docker.clone()))).unwrap()), "in", "{config}");
    }
    let docker = scratch();
    std::fs::write(docker.path().join("config.json"), format!(r#"{{"auths": "{PASSWORD}"}}"#)).unwrap();
    let error = pull(&|c| c.docker_config(Some(docker.path().to_owned()))).unwrap_err();
    assert!(matches!(error, Error::Credentials { .. }), "{error}");
    assert_hidden(&words(&error));
}

#[test]
fn r6_2_credential_helpers_are_asked() {
    let Some(bin) = std::env::var_os("CC_TEST_BIN").map(std::path::PathBuf::from) else {
        // Helpers are found by the process's path, so this runs in a process of its own.
        let bin = scratch();
        let path = format!("{}:{}", bin.path().display(), std::env::var("PATH").unwrap());
        let own = bin.path().to_str().unwrap();
        alone("auth::r6_2_credential_helpers_are_asked", &[("PATH", &path), ("CC_TEST_BIN", own)]);
        return;
    };
    let registry = Registry::with_login();
    let reference = registry.push(&Image::small("in"), "app:1");
    let helper = |name: &str, script: &str| {
        let path = bin.join(format!("docker-credential-{name}"));
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let address = registry.address();
    let answer = format!(r#"{{"ServerURL":"x","Username":"{USER}","Secret":"{PASSWORD}"}}"#);
    helper("good", &format!("read -r url\ntest \"$1 $url\" = 'get {address}' && echo '{answer}'"));
    helper("none", "echo 'credentials not found in native keychain'; exit 1");
    helper("loud", &format!("echo '{PASSWORD}'; echo '{PASSWORD}' >&2; exit 3"));
    let pull = |config: &str| {
        let docker = scratch();
        std::fs::write(docker.path().join("config.json"), config).unwrap();
        let dir = scratch();
        let client = client_in(dir.path()).docker_config(Some(docker.path().to_owned()));
        client.build().unwrap().pull(&reference)
    };
    assert_eq!(text(&pull(&format!(r#"{{"credHelpers": {{"{address}": "good"}}}}"#)).unwrap()), "in");
    assert_eq!(text(&pull(r#"{"credsStore": "good"}"#).unwrap()), "in");
    let error = pull(r#"{"credsStore": "none"}"#).unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    for bad in ["loud", "missing", "../evil"] {
        let error = pull(&format!(r#"{{"credsStore": "{bad}"}}"#)).unwrap_err();
        assert!(matches!(error, Error::Credentials { .. }), "{bad}: {error}");
        assert_hidden(&words(&error));
    }
}

/// Wants a token for everything, and gives a new one to those who ask, if `login` with the password only. A token
/// serves so many requests.
fn token_server(address: &str, login: bool, uses: usize) -> impl Fn(&Request) -> Action + use<> {
    let realm = format!("http://{address}/token");
    let given = Arc::new(AtomicUsize::new(0));
    let used = Arc::new(AtomicUsize::new(0));
    move |request| {
        if request.path.starts_with("/token") {
            let refused = login && request.header("authorization") != Some(BASIC);
            if refused || !request.path.contains("scope=repository%3Aapp%3Apull") {
                return Action::Answer(401, Vec::new(), Vec::new());
            }
            used.store(0, Ordering::SeqCst);
            let n = given.fetch_add(1, Ordering::SeqCst) + 1;
            return Action::Answer(200, Vec::new(), format!(r#"{{"token": "token-{n}"}}"#).into_bytes());
        }
        let wanted = format!("Bearer token-{}", given.load(Ordering::SeqCst));
        if request.header("authorization") == Some(&wanted) && used.fetch_add(1, Ordering::SeqCst) < uses {
            return Action::Forward;
        }
        let challenge = format!(r#"Bearer realm="{realm}",service="here",scope="repository:app:pull""#);
        Action::Answer(401, vec![("WWW-Authenticate", challenge)], Vec::new())
    }
}

#[test]
fn r6_2_bearer_tokens_anonymous_and_with_a_password() {
    let registry = Registry::start();
    registry.push(&Image::small("in"), "app:1");
    for login in [false, true] {
        let proxy =
            Proxy::start_knowing(&registry.address(), |address| token_server(address, login, usize::MAX));
        let reference = format!("{}/app:1", proxy.address());
        let dir = scratch();
        if login {
            let error = client_in(dir.path()).build().unwrap().pull(&reference).unwrap_err();
            assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
            assert_hidden(&words(&error));
        }
        let client = client_in(dir.path()).credentials(USER, PASSWORD).build().unwrap();
        assert_eq!(text(&client.pull(&reference).unwrap()), "in");
        for request in proxy.requests() {
            // The password goes to the server of tokens and nowhere else.
            assert!(request.path.starts_with("/token") || request.header("authorization") != Some(BASIC));
        }
    }
}

#[test]
fn r6_1_a_token_that_expires_in_the_middle_is_replaced() {
    let registry = Registry::start();
    let layers = (0..4u8).map(|i| crate::support::images::tar(&[("name", &[b'0' + i])])).collect();
    registry.push(&Image::new(layers), "app:1");
    let proxy = Proxy::start_knowing(&registry.address(), |address| token_server(address, false, 2));
    let dir = scratch();
    // One after the other, so that each token's uses are counted.
    let client = client_in(dir.path()).parallel_downloads(1).build().unwrap();
    assert_eq!(text(&client.pull(&format!("{}/app:1", proxy.address())).unwrap()), "3");
    let tokens = proxy.requests().iter().filter(|request| request.path.starts_with("/token")).count();
    assert_eq!(tokens, 3, "six documents and blobs, two a token");
}

#[test]
fn r6_2_a_realm_without_encryption_gets_no_password() {
    // A registry on the loopback may be plain; from one that is not, the password must not be lured away.
    let proxy = Proxy::start("", |_| {
        let challenge = r#"Bearer realm="ftp://elsewhere/token",service="x""#.to_owned();
        Action::Answer(401, vec![("WWW-Authenticate", challenge)], Vec::new())
    });
    let dir = scratch();
    let client = client_in(dir.path()).credentials(USER, PASSWORD).build().unwrap();
    let error = client.pull(&format!("{}/app:1", proxy.address())).unwrap_err();
    assert!(error.to_string().contains("without encryption"), "{error}");
    assert_hidden(&words(&error));
}

#[test]
fn r6_2_credentials_do_not_follow_a_redirect_to_another_origin() {
    let registry = Registry::with_login();
    registry.push(&Image::small("in"), "app:1");
    // Redirects blobs once, to `target` with the same path and a mark.
    let redirecting = |target: Option<String>| {
        Proxy::start_knowing(&registry.address(), |own| {
            let target = target.unwrap_or_else(|| own.to_owned());
            move |request: &Request| {
                if request.is_blob() && !request.path.contains("moved") {
                    let to = format!("http://thief:{PASSWORD}@{target}{}?moved", request.path);
                    return Action::Answer(307, vec![("Location", to)], Vec::new());
                }
                Action::Forward
            }
        })
    };
    // The other origin lets in whoever comes, as stores of blobs behind a signed URL do.
    let open = Registry::start();
    open.push(&Image::small("in"), "app:1");
    let other = Proxy::start(&open.address(), |_| Action::Forward);
    let cases = [("another port", other.address(), &other), ("another name", other.other_name(), &other)];
    for (what, target, elsewhere) in cases {
        let before = elsewhere.requests().len();
        let proxy = redirecting(Some(target));
        let dir = scratch();
        let client = client_in(dir.path()).credentials(USER, PASSWORD).build().unwrap();
        assert_eq!(text(&client.pull(&format!("{}/app:1", proxy.address())).unwrap()), "in");
        let moved: Vec<Request> = elsewhere.requests().into_iter().skip(before).collect();
        assert_eq!(moved.len(), 2, "{what}");
        for request in moved {
            assert_eq!(request.header("authorization"), None, "{what}");
        }
    }
    // The control: on the same origin they go along, or the registry would refuse.
    let proxy = redirecting(None);
    let dir = scratch();
    let client = client_in(dir.path()).credentials(USER, PASSWORD).build().unwrap();
    assert_eq!(text(&client.pull(&format!("{}/app:1", proxy.address())).unwrap()), "in");
    let moved: Vec<Request> =
        proxy.requests().into_iter().filter(|request| request.path.contains("moved")).collect();
    assert_eq!(moved.len(), 2);
    assert!(moved.iter().all(|request| request.header("authorization") == Some(BASIC)));

    // Another origin that asks for a login does not get ours.
    let greedy = Proxy::start("", |_| {
        Action::Answer(401, vec![("WWW-Authenticate", "Basic realm=\"me\"".into())], Vec::new())
    });
    let proxy = redirecting(Some(greedy.address()));
    let dir = scratch();
    let client = client_in(dir.path()).credentials(USER, PASSWORD).build().unwrap();
    let error = client.pull(&format!("{}/app:1", proxy.address())).unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    assert_hidden(&words(&error));
    assert!(greedy.requests().iter().all(|request| request.header("authorization").is_none()));
}
