//! What registries and networks do wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cc::oci::{ClientBuilder, Error};
use serde_json::json;

use crate::support::images::{Image, compress, digest, noise, tar};
use crate::support::proxy::{Action, Proxy, Request};
use crate::support::registry::Registry;
use crate::support::{client_in, note, read, root, run, scratch, text};

/// Picks requests.
type Pick = fn(&Request) -> bool;

/// The first `n` of those that `which` picks are treated so, the rest go through.
fn first(
    n: usize,
    which: Pick,
    treat: impl Fn() -> Action + Send + Sync + 'static,
) -> impl Fn(&Request) -> Action + Send + Sync + 'static {
    let seen = AtomicUsize::new(0);
    move |request| {
        if which(request) && seen.fetch_add(1, Ordering::SeqCst) < n { treat() } else { Action::Forward }
    }
}

fn any(_: &Request) -> bool {
    true
}

/// A blob, and none of the documents.
fn large(request: &Request) -> bool {
    request.is_blob() && request.header("accept") == Some("*/*") && !request.path.contains(&config_of(&big()))
}

/// An image with one layer of about a megabyte that does not compress.
fn big() -> Image {
    Image::new(vec![tar(&[("name", b"big"), ("data", &noise(1, 1_000_000))])])
}

fn config_of(image: &Image) -> String {
    let mut blobs = image.blobs();
    blobs.pop();
    digest(&blobs.pop().unwrap())
}

/// Pulls `app:1` through a proxy with this rule.
fn pull(
    registry: &Registry,
    rule: impl Fn(&Request) -> Action + Send + Sync + 'static,
    options: impl FnOnce(ClientBuilder) -> ClientBuilder,
) -> (Result<cc::oci::Image, Error>, Vec<Request>) {
    let proxy = Proxy::start(&registry.address(), rule);
    let dir = scratch();
    let client = options(client_in(dir.path())).build().unwrap();
    let result = client.pull(&format!("{}/app:1", proxy.address()));
    if result.is_err() {
        assert!(client.list().unwrap().is_empty(), "a failed pull leaves no image");
    }
    (result, proxy.requests())
}

fn answer(status: u16) -> impl Fn() -> Action + Send + Sync + 'static {
    move || Action::Answer(status, Vec::new(), Vec::new())
}

#[test]
fn refusals_say_what_to_do() {
    let registry = Registry::start();
    registry.push(&Image::small("in"), "app:1");
    let always = |status: u16| {
        let body = br#"{"errors": [{"code": "DENIED", "message": "not\nyou"}]}"#;
        move |_: &Request| Action::Answer(status, Vec::new(), body.to_vec())
    };
    let (result, requests) = pull(&registry, always(401), |c| c);
    assert!(matches!(result, Err(Error::Unauthorized { .. })));
    assert_eq!(requests.len(), 1);
    let (result, requests) = pull(&registry, always(403), |c| c);
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Forbidden { .. }), "{error}");
    assert!(error.to_string().contains("DENIED: not you"), "{error}");
    assert_eq!(requests.len(), 1, "asking again would not help");
    let (result, requests) = pull(&registry, always(404), |c| c);
    assert!(matches!(result, Err(Error::NotFound { .. })));
    assert_eq!(requests.len(), 1);
    let (result, requests) = pull(&registry, always(500), |c| c.retries(2));
    assert!(matches!(result, Err(Error::Status { status: 500, .. })));
    assert_eq!(requests.len(), 3, "once, and two more times");

    // The registry's own words, for what it does not have.
    let dir = scratch();
    let client = client_in(dir.path()).build().unwrap();
    for missing in ["nothing:1", "app:nothing"] {
        let error = client.pull(&format!("{}/{missing}", registry.address())).unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
        let words = error.to_string();
        assert!(words.contains(missing) && words.contains(&registry.address()), "{words}");
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = client_in(dir.path()).retries(1).build().unwrap().pull(&format!("{nobody}/a:1")).unwrap_err();
    assert!(matches!(error, Error::Network { .. }), "{error}");
    assert!(error.to_string().contains(&nobody.to_string()), "{error}");
}

#[test]
fn r6_1_passing_failures_are_waited_out() {
    let registry = Registry::start();
    registry.push(&big(), "app:1");
    for status in [500, 502, 503, 504, 408] {
        let (result, requests) = pull(&registry, first(2, any, answer(status)), |c| c);
        assert_eq!(text(&result.unwrap()), "big", "{status}");
        assert_eq!(requests.len(), 5);
    }
    let (result, requests) = pull(&registry, first(2, large, answer(500)), |c| c);
    assert_eq!(text(&result.unwrap()), "big");
    assert_eq!(requests.len(), 5);
}

#[test]
fn r6_1_retry_after_is_honoured_and_has_a_limit() {
    let registry = Registry::start();
    registry.push(&Image::small("in"), "app:1");
    let limited = |after: &str| {
        let after = after.to_owned();
        move || Action::Answer(429, vec![("Retry-After", after.clone())], Vec::new())
    };
    let start = Instant::now();
    let (result, requests) = pull(&registry, first(1, any, limited("2")), |c| c);
    assert_eq!(text(&result.unwrap()), "in");
    assert!(start.elapsed() >= Duration::from_secs(2), "it came back too early");
    assert_eq!(requests.len(), 4);

    let (result, requests) =
        pull(&registry, first(1, any, limited("9")), |c| c.max_retry_after(Duration::from_secs(8)));
    let error = result.unwrap_err();
    assert!(matches!(error, Error::RateLimited { retry_after: Some(s), .. } if s.as_secs() == 9), "{error}");
    assert_eq!(requests.len(), 1);
    // A date that is long gone means now.
    let (result, _) = pull(&registry, first(1, any, limited("Wed, 21 Oct 2015 07:28:00 GMT")), |c| c);
    assert_eq!(text(&result.unwrap()), "in");
}

#[test]
fn r6_1_a_broken_download_is_resumed_where_it_broke() {
    let registry = Registry::start();
    registry.push(&big(), "app:1");
    let (result, requests) = pull(&registry, first(2, large, || Action::Cut(300_000)), |c| c);
    let image = result.unwrap();
    assert_eq!(read(&root(&image), "data").unwrap(), noise(1, 1_000_000));
    let ranges: Vec<_> = requests.iter().filter(|r| large(r)).map(|r| r.header("range")).collect();
    assert_eq!(ranges, [None, Some("bytes=300000-"), Some("bytes=600000-")]);

    // A server that does not know ranges sends all of it again.
    let without_ranges = {
        let cut = AtomicUsize::new(0);
        let blob = big().blobs().swap_remove(0);
        move |request: &Request| match request {
            request if !large(request) => Action::Forward,
            _ if cut.fetch_add(1, Ordering::SeqCst) == 0 => Action::Cut(300_000),
            _ => Action::Answer(200, Vec::new(), blob.clone()),
        }
    };
    let (result, _) = pull(&registry, without_ranges, |c| c);
    assert_eq!(read(&root(&result.unwrap()), "data").unwrap(), noise(1, 1_000_000));

    // One that breaks every time without any progress is given up.
    let (result, requests) = pull(&registry, first(usize::MAX, large, || Action::Cut(0)), |c| c.retries(2));
    assert!(matches!(result, Err(Error::Network { .. })));
    assert_eq!(requests.iter().filter(|r| large(r)).count(), 3);
}

#[test]
fn r6_1_a_failed_pull_is_continued_by_the_next() {
    let registry = Registry::start();
    registry.push(&big(), "app:1");
    let calls = Arc::new(AtomicUsize::new(0));
    let proxy = Proxy::start(&registry.address(), {
        let calls = calls.clone();
        move |request| match large(request) && calls.fetch_add(1, Ordering::SeqCst) == 0 {
            true => Action::Cut(700_000),
            false => Action::Forward,
        }
    });
    let dir = scratch();
    let reference = format!("{}/app:1", proxy.address());
    let client = client_in(dir.path()).retries(0).build().unwrap();
    assert!(matches!(client.pull(&reference), Err(Error::Network { .. })));
    assert_eq!(text(&client.pull(&reference).unwrap()), "big");
    let last = proxy.requests().into_iter().rfind(large).unwrap();
    assert_eq!(last.header("range"), Some("bytes=700000-"));
    assert_eq!(client.prune().unwrap().bytes(), 0, "nothing unfinished is left");
}

#[test]
fn r6_1_what_other_layers_had_is_kept_when_one_fails() {
    let registry = Registry::start();
    let image =
        Image::new(vec![tar(&[("name", b"bad")]), tar(&[("name", b"good"), ("data", &noise(4, 1_000_000))])]);
    registry.push(&image, "app:1");
    let [bad, good] = [0, 1].map(|layer| digest(&image.blobs()[layer]));
    let dir = scratch();
    let partial = {
        let diff = digest(&image.layers[1].0).replace(':', "-");
        dir.path().join("oci/1/work").join(diff).join(format!("blob-{}", good.replace(':', "-")))
    };
    let proxy = Proxy::start(&registry.address(), {
        let (first, good) = (AtomicUsize::new(0), good.clone());
        move |request| {
            if request.path.contains(&bad) && first.fetch_add(1, Ordering::SeqCst) == 0 {
                let there = || std::fs::metadata(&partial).is_ok_and(|meta| meta.len() == 300_000);
                crate::support::wait_until("a part of the other layer is here", there);
                return Action::Answer(404, Vec::new(), Vec::new());
            }
            let again = request.header("range").is_some() || !request.path.contains(&good);
            if again { Action::Forward } else { Action::Stall(300_000) }
        }
    });
    let reference = format!("{}/app:1", proxy.address());
    let client = client_in(dir.path()).build().unwrap();
    assert!(matches!(client.pull(&reference), Err(Error::NotFound { .. })));
    assert_eq!(text(&client.pull(&reference).unwrap()), "good");
    let last = proxy.requests().into_iter().rfind(|request| request.path.contains(&good)).unwrap();
    assert_eq!(last.header("range"), Some("bytes=300000-"));
}

#[test]
fn r6_1_a_stalled_download_is_noticed() {
    let registry = Registry::start();
    registry.push(&big(), "app:1");
    let timeout = Duration::from_millis(400);
    // Taken up again by itself.
    let (result, requests) =
        pull(&registry, first(1, large, || Action::Stall(300_000)), |c| c.no_progress_timeout(timeout));
    assert_eq!(text(&result.unwrap()), "big");
    assert_eq!(requests.iter().rfind(|r| large(r)).unwrap().header("range"), Some("bytes=300000-"));
    // Given up in the end; likewise when a document does not come.
    let stalled: [(Pick, usize); 2] = [(large, 0), (any, 10)];
    for (which, after) in stalled {
        let rule = first(usize::MAX, which, move || Action::Stall(after));
        let (result, _) = pull(&registry, rule, |c| c.no_progress_timeout(timeout).retries(1));
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Stalled { timeout: t, .. } if t == timeout), "{error}");
    }
}

#[test]
fn r6_3_a_web_page_instead_of_an_answer_is_refused_by_name() {
    let registry = Registry::start();
    registry.push(&Image::small("in"), "app:1");
    let page = b"<!DOCTYPE html><title>Log in to the guest network</title>".to_vec();
    for kind in ["text/html; charset=utf-8", "application/vnd.oci.image.index.v1+json"] {
        let page = page.clone();
        let rule = move |_: &Request| Action::Answer(200, vec![("Content-Type", kind.into())], page.clone());
        let (result, requests) = pull(&registry, rule, |c| c);
        let error = result.unwrap_err();
        assert!(matches!(error, Error::NotARegistry { .. }), "{error}");
        assert!(error.to_string().contains(requests[0].header("host").unwrap()), "{error}");
    }
    // From a mirror: the mirror is named, and the registry not asked in its place.
    let mirror = Proxy::start("", move |_| {
        Action::Answer(200, vec![("Content-Type", "text/html".into())], page.clone())
    });
    let dir = scratch();
    let client = client_in(dir.path()).mirror(registry.address(), mirror.address()).build().unwrap();
    let error = client.pull(&format!("{}/app:1", registry.address())).unwrap_err();
    assert!(matches!(error, Error::NotARegistry { .. }), "{error}");
    assert!(error.to_string().contains(&mirror.address()), "{error}");
}

#[test]
fn r6_6_content_that_is_not_what_its_digest_says_is_refused() {
    let registry = Registry::start();
    registry.push(&big(), "app:1");
    let kinds: [(&str, Pick); 3] = [
        ("manifest", |r| r.path.contains("/manifests/")),
        ("configuration", |r| r.is_blob() && !large(r)),
        ("layer", large),
    ];
    for (what, which) in kinds {
        let rule = move |request: &Request| if which(request) { Action::Corrupt } else { Action::Forward };
        let (result, _) = pull(&registry, rule, |c| c);
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Digest { .. }), "{what}: {error}");
    }
    // A layer that was damaged once is fetched again.
    let (result, _) = pull(&registry, first(1, large, || Action::Corrupt), |c| c);
    assert_eq!(text(&result.unwrap()), "big");
    // A mirror that lies is no reason not to take it from the registry.
    let mirror =
        Proxy::start(&registry.address(), |r| if large(r) { Action::Corrupt } else { Action::Forward });
    let dir = scratch();
    let client = client_in(dir.path()).mirror(registry.address(), mirror.address()).build().unwrap();
    assert_eq!(text(&client.pull(&format!("{}/app:1", registry.address())).unwrap()), "big");
}

#[test]
fn r6_6_a_diff_id_that_lies_is_found() {
    let registry = Registry::start();
    let mut image = Image::small("in");
    image.config["rootfs"]["diff_ids"][0] = json!(digest(b"something else"));
    let reference = registry.push(&image, "app:1");
    let dir = scratch();
    let client = client_in(dir.path()).build().unwrap();
    let error = client.pull(&reference).unwrap_err();
    assert!(matches!(error, Error::Digest { .. }), "{error}");
    assert!(error.to_string().contains("unpacked"), "{error}");
}

#[test]
fn r6_8_malformed_images_are_refused() {
    let registry = Registry::start();
    let good = Image::small("in");
    registry.push(&good, "app:1");
    let manifest: serde_json::Value = serde_json::from_slice(&good.blobs().pop().unwrap()).unwrap();
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut changed = manifest.clone();
        change(&mut changed);
        changed
    };
    let deep = (0..10_000).map(|_| '[').collect::<String>();
    let cases = [
        (
            "two layers more",
            with(&|m| {
                let layer = m["layers"][0].clone();
                m["layers"].as_array_mut().unwrap().push(layer);
            }),
        ),
        ("no layers", with(&|m| m["layers"] = json!([]))),
        ("layers of null", with(&|m| m["layers"] = json!(null))),
        ("both kinds", with(&|m| m["manifests"] = json!([]))),
        ("an index by type", with(&|m| m["mediaType"] = json!("application/vnd.oci.image.index.v1+json"))),
        ("no schema", with(&|m| m["schemaVersion"] = json!(null))),
        ("old schema", with(&|m| m["schemaVersion"] = json!(1))),
        (
            "a path as digest",
            with(&|m| m["layers"][0]["digest"] = json!("sha256:../../../../../../etc/passwd")),
        ),
        ("a short digest", with(&|m| m["layers"][0]["digest"] = json!("sha256:abcdef"))),
        (
            "an upper-case digest",
            with(&|m| {
                let text = m["layers"][0]["digest"].as_str().unwrap().replace("sha256:", "sha256:A")[..71]
                    .to_owned();
                m["layers"][0]["digest"] = json!(text);
            }),
        ),
        ("a negative size", with(&|m| m["layers"][0]["size"] = json!(-1))),
        ("another size", with(&|m| m["layers"][0]["size"] = json!(17))),
        ("a huge size", with(&|m| m["layers"][0]["size"] = json!(u64::MAX))),
        ("a huge configuration", with(&|m| m["config"]["size"] = json!(u64::MAX))),
        ("an unknown layer", with(&|m| m["layers"][0]["mediaType"] = json!("application/x.tar+encrypted"))),
        ("nothing", json!({})),
        ("an empty index", json!({"schemaVersion": 2, "manifests": []})),
        ("a list", json!([])),
        ("a text", json!(deep)),
    ];
    for (what, manifest) in cases {
        let body = manifest.to_string().into_bytes();
        let rule = move |request: &Request| match request.path.contains("/manifests/") {
            true => Action::Answer(200, Vec::new(), body.clone()),
            false => Action::Forward,
        };
        let (result, _) = pull(&registry, rule, |c| c.retries(0));
        match result {
            Ok(_) => panic!("{what} was taken"),
            Err(error) => println!("{what}: {error}"),
        }
    }
    let (result, _) = pull(&registry, |_| Action::Forward, |c| c);
    assert_eq!(text(&result.unwrap()), "in", "the control");

    // An index that leads to itself by way of a server that does not care for digests cannot be made: what it names
    // is verified. One that is nested too deep can.
    let mut inner = json!({"schemaVersion": 2, "manifests": []});
    let mut documents = std::collections::HashMap::new();
    for _ in 0..8 {
        let bytes = inner.to_string().into_bytes();
        let entry = crate::support::images::index_descriptor(&inner);
        documents.insert(digest(&bytes), bytes);
        inner = json!({"schemaVersion": 2, "manifests": [entry]});
    }
    documents.insert("1".into(), inner.to_string().into_bytes());
    let rule = move |request: &Request| {
        let name = request.path.rsplit('/').next().unwrap();
        Action::Answer(200, Vec::new(), documents[name].clone())
    };
    let (result, requests) = pull(&registry, rule, |c| c);
    assert!(result.unwrap_err().to_string().contains("nested"));
    assert!(requests.len() <= 6, "{}", requests.len());
}

#[test]
fn documents_without_end_are_cut_off() {
    let registry = Registry::start();
    let rule = |_: &Request| Action::Answer(200, Vec::new(), vec![b' '; 9 << 20]);
    let (result, _) = pull(&registry, rule, |c| c);
    assert!(matches!(result, Err(Error::TooLarge { .. })));
}

#[test]
fn bombs_end_at_the_cap() {
    let registry = Registry::start();
    let dir = scratch();
    let zeros = vec![0u8; 64 << 20];
    let image = Image::new(vec![tar(&[("name", b"bomb"), ("zeros", &zeros)])]);
    let reference = registry.push(&image, "bomb:1");
    let client = client_in(dir.path()).max_layer_size(1 << 20).build().unwrap();
    let error = client.pull(&reference).unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit, .. } if limit == 1 << 20), "{error}");
    assert!(error.to_string().contains("max_layer_size"), "{error}");
    let used = run("du", &["-sk", dir.path().to_str().unwrap()]);
    let used: u64 = used.split_whitespace().next().unwrap().parse().unwrap();
    assert!(used < 4096, "{used} KiB are left");
    // The control: with room it is an image.
    assert_eq!(text(&client_in(dir.path()).build().unwrap().pull(&reference).unwrap()), "bomb");
}

#[test]
fn layers_that_are_no_tars_are_refused() {
    let registry = Registry::start();
    let evil = {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        header.as_mut_bytes()[..9].copy_from_slice(b"../escape");
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        builder.append(&header, &b""[..]).unwrap();
        builder.into_inner().unwrap()
    };
    let truncated = tar(&[("name", &noise(1, 5000))])[..3000].to_vec();
    let dir = scratch();
    let client = client_in(dir.path()).build().unwrap();
    for (what, layer) in [("noise", noise(9, 10_000)), ("escape", evil), ("truncated", truncated)] {
        let reference = registry.push(&Image::new(vec![layer]), &format!("{what}:1"));
        let error = client.pull(&reference).unwrap_err();
        assert!(matches!(error, Error::Layer { .. }), "{what}: {error}");
    }
    // Compressed data that ends early, under a digest that is right.
    let whole = compress(&tar(&[("name", &noise(1, 50_000))]), crate::support::images::Compression::Gzip);
    let mut image = Image::new(vec![whole[..whole.len() / 2].to_vec()]);
    image.layers[0].1 = crate::support::images::Compression::Plain;
    let reference = registry.push(&image, "half:1");
    let error = client.pull(&reference).unwrap_err();
    assert!(matches!(error, Error::Malformed { .. } | Error::Layer { .. }), "{error}");
    assert!(client.list().unwrap().is_empty());
}

#[test]
fn a_full_disk_is_a_clean_error() {
    let dir = scratch();
    let place = dir.path().to_str().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=6m", "tmpfs", place])
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !mounted {
        note("a_full_disk_is_a_clean_error: NOT RUN, it takes root to mount a small disk");
        return;
    }
    struct Mount(String);
    impl Drop for Mount {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    let _mount = Mount(place.to_owned());
    let registry = Registry::start();
    let small = registry.push(&big(), "small:1");
    let large = Image::new(vec![tar(&[("data", &noise(5, 12 << 20))])]);
    let large = registry.push(&large, "large:1");
    let zeros = vec![0u8; 12 << 20];
    let unpacks = registry.push(&Image::new(vec![tar(&[("data", &zeros)])]), "unpacks:1");
    let client = client_in(dir.path()).build().unwrap();
    let held = client.pull(&small).unwrap();
    for reference in [&large, &unpacks] {
        let error = client.pull(reference).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error:?}");
        assert!(error.to_string().contains("the disk is full"), "{error}");
    }
    // What was there is whole, and there is room again.
    assert_eq!(text(&held), "big");
    assert_eq!(text(&client.pull(&small).unwrap()), "big");
    assert_eq!(client.prune().unwrap().bytes(), 0, "nothing of the failures is left");
    let again = registry.push(&Image::new(vec![tar(&[("name", &noise(6, 1 << 20))])]), "again:1");
    client.pull(&again).unwrap();
}
