//! Encryption: a registry with a certificate that the host trusts, and one that it does not.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

use cc::oci::Error;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::support::images::Image;
use crate::support::proxy::{Action, Proxy};
use crate::support::registry::Registry;
use crate::support::{alone, client_in, scratch, text};

/// Ends encryption before `upstream`, for so many connections.
fn tls_server(
    config: Arc<rustls::ServerConfig>,
    upstream: String,
    connections: usize,
) -> (u16, impl FnOnce()) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        for _ in 0..connections {
            let (stream, _) = listener.accept().unwrap();
            let mut tls =
                rustls::StreamOwned::new(rustls::ServerConnection::new(config.clone()).unwrap(), stream);
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") {
                match tls.read(&mut byte) {
                    Ok(1) => head.push(byte[0]),
                    // Who does not trust us hangs up.
                    _ => break,
                }
            }
            if !head.ends_with(b"\r\n\r\n") {
                continue;
            }
            let mut plain = std::net::TcpStream::connect(&upstream).unwrap();
            let head = String::from_utf8(head).unwrap().replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
            plain.write_all(head.as_bytes()).unwrap();
            let mut answer = Vec::new();
            plain.read_to_end(&mut answer).unwrap();
            tls.write_all(&answer).unwrap();
            tls.conn.send_close_notify();
            tls.flush().unwrap();
        }
    });
    (port, move || thread.join().unwrap())
}

#[test]
fn registries_are_read_through_tls_and_never_out_of_it() {
    let Ok(file) = std::env::var("SSL_CERT_FILE") else {
        // What is trusted is the process's, so this runs in one of its own.
        let dir = scratch();
        let file = dir.path().join("trusted.pem");
        alone(
            "tls::registries_are_read_through_tls_and_never_out_of_it",
            &[("SSL_CERT_FILE", file.to_str().unwrap()), ("SSL_CERT_DIR", "")],
        );
        return;
    };
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    std::fs::write(&file, certified.cert.pem()).unwrap();
    let config = |certified: &rcgen::CertifiedKey<rcgen::KeyPair>| {
        let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], PrivateKeyDer::Pkcs8(key))
            .unwrap();
        Arc::new(config)
    };
    let registry = Registry::start();
    registry.push(&Image::small("in"), "app:1");
    let pull = |port: u16| {
        let dir = scratch();
        let client =
            client_in(dir.path()).retries(0).mirror("registry.invalid", format!("https://localhost:{port}"));
        client.build().unwrap().pull("registry.invalid/app:1")
    };
    let (port, ended) = tls_server(config(&certified), registry.address(), 3);
    assert_eq!(text(&pull(port).unwrap()), "in");
    ended();

    // The error is the registry's own, which there is none of; that the mirror was not believed is what counts.
    let stranger = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let (port, ended) = tls_server(config(&stranger), registry.address(), 1);
    assert!(pull(port).is_err());
    ended();

    // Out of encryption no redirect is followed.
    let target = Proxy::start(&registry.address(), |_| Action::Forward);
    let to = format!("http://{}/v2/app/manifests/1", target.address());
    let redirects =
        Proxy::start("", move |_| Action::Answer(307, vec![("Location", to.clone())], Vec::new()));
    let (port, ended) = tls_server(config(&certified), redirects.address(), 1);
    assert!(!matches!(pull(port), Ok(_) | Err(Error::Digest { .. })));
    ended();
    assert_eq!(redirects.requests().len(), 1);
    assert_eq!(target.requests().len(), 0);
}
