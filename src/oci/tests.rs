//! Tests without a network: names, digests, platforms, stored credentials.

use std::fs;
use std::sync::Arc;

use super::credentials::{Credentials, stored};
use super::http::Http;
use super::manifest::{Document, ImageConfig};
use super::options::Options;
use super::registry::Repository;
use super::*;

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

#[test]
fn references_have_dockers_defaults() {
    for (short, full) in [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("grafana/grafana", "docker.io/grafana/grafana:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("localhost/a", "localhost/a:latest"),
        ("localhost:5000/a/b/c:1", "localhost:5000/a/b/c:1"),
        ("ghcr.io/a/b", "ghcr.io/a/b:latest"),
        ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
    ] {
        assert_eq!(reference(short).to_string(), full, "{short}");
        assert_eq!(reference(full), reference(short), "{full}");
    }
    assert_eq!(reference("alpine").host(), "registry-1.docker.io");
    assert_eq!(reference("ghcr.io/a/b").host(), "ghcr.io");
    let digest = Digest::of(b"x");
    let both = reference(&format!("alpine:3@{digest}"));
    assert_eq!((both.tag(), both.digest(), both.target()), (Some("3"), Some(&digest), digest.to_string()));
    assert_eq!(reference(&format!("alpine@{digest}")).tag(), None);
}

#[test]
fn r6_6_only_proper_digests_become_names() {
    let good = Digest::of(b"");
    assert_eq!(good.to_string(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_eq!(good.to_string().parse::<Digest>().unwrap(), good);
    assert_eq!(Digest::from_file_name(&good.file_name()), Some(good.clone()));
    assert_eq!(format!("sha512:{}", "0".repeat(128)).parse::<Digest>().unwrap().algorithm_name(), "sha512");
    let hex = good.hex();
    for bad in [
        String::new(),
        hex.to_owned(),
        format!("sha256:{}", hex.to_uppercase()),
        format!("sha256:{}", &hex[1..]),
        format!("sha256:{hex}0"),
        format!("sha256:../{}", &hex[3..]),
        format!("sha256:{}\0", &hex[1..]),
        format!("sha256:{}\u{660}", &hex[2..]),
        format!("sha1:{hex}"),
        format!("../sha256:{hex}"),
        format!(" sha256:{hex}"),
    ] {
        assert!(bad.parse::<Digest>().is_err(), "{bad:?}");
    }
    assert_eq!(good.check(b""), Ok(()));
    assert_eq!(good.check(b"x"), Err(Digest::of(b"x")));
}

#[test]
fn variants_stand_for_what_is_left_out() {
    let platform = |text: &str| text.parse::<Platform>().unwrap();
    for (wanted, found, fits) in [
        ("linux/amd64", "linux/amd64", true),
        ("linux/amd64", "linux/amd64/v2", true),
        ("linux/amd64/v1", "linux/amd64", true),
        ("linux/amd64/v2", "linux/amd64", false),
        ("linux/arm64", "linux/arm64/v8", true),
        ("linux/arm64/v8", "linux/arm64", true),
        ("linux/arm/v6", "linux/arm", false),
        ("linux/arm/v7", "linux/arm", true),
        ("linux/amd64", "windows/amd64", false),
        ("linux/amd64", "linux/386", false),
    ] {
        assert_eq!(platform(wanted).accepts(&platform(found)), fits, "{wanted} {found}");
    }
}

#[test]
fn a_configuration_may_leave_out_almost_everything() {
    let text = br#"{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
        "config": {"Env": null, "Cmd": null, "ExposedPorts": null, "Labels": null, "User": "", "WorkingDir": "",
        "Volumes": null, "Healthcheck": {"Test": ["x"]}, "OnBuild": null, "ArgsEscaped": true}}"#;
    let config = ImageConfig::parse(text, "it").unwrap();
    assert_eq!((config.user, config.working_dir, config.stop_signal), (None, None, None));
    assert!(config.env.is_empty() && config.cmd.is_empty() && config.exposed_ports.is_empty());
    for bad in [
        &br#"{}"#[..],
        br#"{"architecture": "amd64", "os": "linux"}"#,
        br#"{"architecture": "amd64", "os": "linux", "rootfs": {"type": "other", "diff_ids": []}}"#,
        br#"{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ["x"]}}"#,
    ] {
        assert!(ImageConfig::parse(bad, "it").is_err(), "{}", bad.escape_ascii());
    }
}

#[test]
fn a_configuration_is_written_as_it_is_read() {
    let full = br#"{"architecture": "arm", "os": "linux", "variant": "v7", "config": {"Env": ["A=1", "B"],
        "Entrypoint": ["/e", "x y"], "Cmd": ["c"], "User": "a:b", "WorkingDir": "/w", "StopSignal": "SIGINT",
        "Labels": {"l": "v"}, "ExposedPorts": {"80/tcp": {}}}, "rootfs": {"type": "layers", "diff_ids":
        ["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}}"#;
    let least = br#"{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}"#;
    for text in [&full[..], least] {
        let config = ImageConfig::parse(text, "it").unwrap();
        assert_eq!(ImageConfig::parse(config.to_json().as_bytes(), "it").unwrap(), config);
    }
}

#[test]
fn documents_are_of_one_kind() {
    let config = r#""config": {"mediaType": "x/y", "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "size": 0}"#;
    let kind = |text: String| match Document::parse(text.as_bytes(), "it") {
        Ok(Document::Index(_)) => "index",
        Ok(Document::Image(_)) => "image",
        Err(_) => "refused",
    };
    assert_eq!(kind(r#"{"schemaVersion": 2, "manifests": []}"#.into()), "index");
    assert_eq!(kind(format!(r#"{{"schemaVersion": 2, {config}, "layers": []}}"#)), "image");
    assert_eq!(
        kind(format!(r#"{{"schemaVersion": 2, {config}, "layers": [], "manifests": []}}"#)),
        "refused"
    );
    let image = "application/vnd.oci.image.manifest.v1+json";
    assert_eq!(
        kind(format!(r#"{{"schemaVersion": 2, "mediaType": "{image}", "manifests": []}}"#)),
        "refused"
    );
    assert_eq!(kind(r#"{"schemaVersion": 1, "fsLayers": []}"#.into()), "refused");
}

#[test]
fn stored_credentials_are_found_by_every_name() {
    let dir = tempfile::tempdir().unwrap();
    let look = |config: &str, registry: &str| {
        fs::write(dir.path().join("config.json"), config).unwrap();
        stored(dir.path(), registry)
    };
    let ali = Credentials::Password { user: "ali".into(), password: "a:b".into() };
    let auth = r#"{"auth": "YWxpOmE6Yg"}"#;
    let hub = format!(r#"{{"auths": {{"https://index.docker.io/v1/": {auth}}}}}"#);
    assert_eq!(look(&hub, "docker.io").unwrap(), Some(ali.clone()));
    assert_eq!(look(&hub, "quay.io").unwrap(), None);
    for name in ["quay.io", "https://quay.io", "https://quay.io/v2/"] {
        let config = format!(r#"{{"auths": {{"{name}": {auth}}}}}"#);
        assert_eq!(look(&config, "quay.io").unwrap(), Some(ali.clone()), "{name}");
        assert_eq!(look(&config, "quay.io.example.com").unwrap(), None, "{name}");
        assert_eq!(look(&config, "quay.io:5000").unwrap(), None, "{name}");
    }
    let identity = r#"{"auths": {"quay.io": {"auth": "PHRva2VuPjo=", "identitytoken": "t"}}}"#;
    assert_eq!(look(identity, "quay.io").unwrap(), Some(Credentials::Identity("t".into())));
    assert_eq!(look(r#"{"auths": {"quay.io": {}}}"#, "quay.io").unwrap(), None);
    assert!(look(r#"{"auths": {"quay.io": {"auth": "!"}}}"#, "quay.io").is_err());
    assert!(look("[", "quay.io").is_err());
    assert_eq!(stored(&dir.path().join("nowhere"), "quay.io").unwrap(), None);
    assert_eq!(format!("{ali:?}"), "Credentials(hidden)");
}

#[test]
fn only_the_loopback_and_what_is_named_is_read_without_encryption() {
    let mut options = Options::new("nowhere".into());
    options.plain_http.push("plain.example:80".into());
    for mirror in ["m.example", "http://n.example/path/", "https://127.0.0.1:1"] {
        options.mirrors.entry("quay.io".into()).or_default().push(mirror.into());
    }
    options.mirrors.insert("ghcr.io".into(), vec!["ftp://m.example".into()]);
    let http = Arc::new(Http::new(&options).unwrap());
    let options = Arc::new(options);
    let addresses = |text: &str| {
        Repository::new(http.clone(), options.clone(), &reference(text))
            .map(|repository| repository.addresses())
    };
    for (text, address) in [
        ("alpine", "https://registry-1.docker.io/v2/library/alpine/"),
        ("plain.example:80/a", "http://plain.example/v2/a/"),
        ("plain.example/a", "https://plain.example/v2/a/"),
        ("127.0.0.1:5000/a", "http://127.0.0.1:5000/v2/a/"),
        ("localhost:5000/a", "http://localhost:5000/v2/a/"),
        ("127.0.0.1.example/a", "https://127.0.0.1.example/v2/a/"),
        ("localhost.example/a", "https://localhost.example/v2/a/"),
        ("10.0.0.1:5000/a", "https://10.0.0.1:5000/v2/a/"),
    ] {
        assert_eq!(addresses(text).unwrap(), [address], "{text}");
    }
    assert_eq!(
        addresses("quay.io/a").unwrap(),
        [
            "https://m.example/v2/a/",
            "http://n.example/path/v2/a/",
            "https://127.0.0.1:1/v2/a/",
            "https://quay.io/v2/a/"
        ]
    );
    assert!(matches!(addresses("ghcr.io/a"), Err(Error::Option { .. })));
}
