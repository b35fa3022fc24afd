//! Pulls that go well, and what is refused before anything is downloaded.

use std::sync::{Arc, Mutex};

use cc::oci::{Client, Error, Platform, PullPolicy};
use serde_json::json;

use crate::support::images::{Compression, Image, index, index_descriptor, noise, tar, write_layout};
use crate::support::proxy::{Action, Proxy};
use crate::support::registry::Registry;
use crate::support::{alone, client_in, lengths, read, root, run, scratch, text};

#[test]
fn an_image_is_pulled_and_its_layers_are_an_overlay() {
    let registry = Registry::start();
    let lower = tar(&[("etc/name", b"lower"), ("gone", b"x"), ("kept", b"kept")]);
    let upper = tar(&[("etc/name", b"upper"), (".wh.gone", b"")]);
    let image = Image::new(vec![lower.clone(), upper.clone()]);
    let reference = registry.push(&image, "team/app:1");
    let dir = scratch();

    let pulled = client_in(dir.path()).build().unwrap().pull(&reference).unwrap();
    assert_eq!(pulled.reference(), Some(reference.as_str()));
    assert_eq!(lengths(pulled.layers()), [lower.len() as u64, upper.len() as u64]);
    assert_eq!(pulled.size(), (lower.len() + upper.len()) as u64);
    let fs = root(&pulled);
    assert_eq!(read(&fs, "etc/name").unwrap(), b"upper");
    assert_eq!(read(&fs, "kept").unwrap(), b"kept");
    assert_eq!(read(&fs, "gone"), None);

    let config = pulled.config();
    assert_eq!(config.platform.to_string(), "linux/amd64");
    assert_eq!(config.env, ["PATH=/bin", "A=1"]);
    assert_eq!(config.working_dir.as_deref(), Some("/w"));
    assert_eq!(config.entrypoint, ["/entry"]);
    assert_eq!(config.cmd, ["one", "two"]);
    assert_eq!(config.user.as_deref(), Some("1000:1000"));
    assert_eq!(config.labels, [("a".into(), "1".into()), ("b".into(), "2".into())]);
    assert_eq!(config.exposed_ports, ["443/tcp", "80/tcp"]);
    assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
}

#[test]
fn r6_3_docker_schema_2_and_all_compressions() {
    let registry = Registry::start();
    let content = noise(7, 300_000);
    for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
        let image = Image::new(vec![tar(&[("name", b"all"), ("data", &content)])]).compressed(compression);
        let reference = registry.push(&image, &format!("compressed:{compression:?}").to_lowercase());
        let dir = scratch();
        let pulled = client_in(dir.path()).build().unwrap().pull(&reference).unwrap();
        assert_eq!(read(&root(&pulled), "data").unwrap(), content, "{compression:?}");
    }
    // What docker push makes.
    let layout = scratch();
    Image::small("docker").write_layout(layout.path(), None);
    let reference = registry.push_layout(layout.path(), "docker:1", &["--format=v2s2"]);
    let manifest =
        run("skopeo", &["inspect", "--raw", "--tls-verify=false", &format!("docker://{reference}")]);
    assert!(manifest.contains("application/vnd.docker.distribution.manifest.v2+json"), "{manifest}");
    let dir = scratch();
    let pulled = client_in(dir.path()).build().unwrap().pull(&reference).unwrap();
    assert_eq!(text(&pulled), "docker");
}

#[test]
fn r6_3_a_platform_is_chosen_from_nested_indexes() {
    let registry = Registry::start();
    let amd = Image::small("amd");
    let arm7 = Image::small("arm7").for_platform("arm", Some("v7"));
    let arm6 = Image::small("arm6").for_platform("arm", Some("v6"));
    let v3 = Image::small("v3").for_platform("amd64", Some("v3"));
    let layout = scratch();
    let inner = index(&[v3.descriptor(), arm6.descriptor(), arm7.descriptor(), amd.descriptor()]);
    let mut attestation = amd.descriptor();
    attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    let middle = index(&[index_descriptor(&inner)]);
    let outer = index(&[attestation, index_descriptor(&middle)]);
    write_layout(layout.path(), &[&amd, &arm6, &arm7, &v3], &[&inner, &middle, &outer], &outer);
    // skopeo pushes one level; the levels above go in as they are.
    for image in [&amd, &arm6, &arm7, &v3] {
        registry.push(image, "multi:one");
    }
    let reference = format!("{}/multi:latest", registry.address());
    for (name, document) in [("inner", &inner), ("middle", &middle), ("latest", &outer)] {
        let body = serde_json::to_vec(document).unwrap();
        let url = format!("http://{}/v2/multi/manifests/{name}", registry.address());
        let kind = "application/vnd.oci.image.index.v1+json";
        let answer = ureq::put(&url).header("content-type", kind).send(&body[..]).unwrap();
        assert_eq!(answer.status(), 201);
    }

    let dir = scratch();
    let pull = |platform: &str| {
        let client = client_in(dir.path()).platform(platform.parse().unwrap()).build().unwrap();
        client.pull(&reference)
    };
    // Of several the one that runs on every processor.
    assert_eq!(text(&pull("linux/amd64").unwrap()), "amd");
    assert_eq!(text(&pull("linux/amd64/v3").unwrap()), "v3");
    assert_eq!(text(&pull("linux/arm").unwrap()), "arm7");
    assert_eq!(text(&pull("linux/arm/v6").unwrap()), "arm6");
    let error = pull("linux/riscv64").unwrap_err();
    let Error::Platform { available, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*available, ["linux/amd64", "linux/amd64/v3", "linux/arm/v6", "linux/arm/v7"]);
    assert!(error.to_string().contains("linux/arm/v7"), "{error}");

    // One manifest without an index says itself what it is for.
    let single = registry.push(&arm7, "single:1");
    let error = client_in(dir.path()).build().unwrap().pull(&single).unwrap_err();
    assert!(error.to_string().contains("not there for linux/amd64; it is for linux/arm/v7"), "{error}");
}

#[test]
fn policies_decide_who_is_asked() {
    let registry = Registry::start();
    let proxy = Proxy::start(&registry.address(), |_| Action::Forward);
    let reference = format!("{}/app:tag", proxy.address());
    let pull =
        |dir: &std::path::Path, policy| client_in(dir).policy(policy).build().unwrap().pull(&reference);
    let dir = scratch();

    let error = pull(dir.path(), PullPolicy::Never).unwrap_err();
    assert!(matches!(error, Error::NotLocal { .. }), "{error}");
    assert_eq!(proxy.requests().len(), 0);

    registry.push(&Image::small("one"), "app:tag");
    assert_eq!(text(&pull(dir.path(), PullPolicy::IfNotPresent).unwrap()), "one");
    let asked = proxy.requests().len();
    assert_eq!(asked, 3, "manifest, configuration, layer");

    registry.push(&Image::small("two"), "app:tag");
    assert_eq!(text(&pull(dir.path(), PullPolicy::IfNotPresent).unwrap()), "one");
    assert_eq!(text(&pull(dir.path(), PullPolicy::Never).unwrap()), "one");
    assert_eq!(proxy.requests().len(), asked, "nobody was asked");
    assert_eq!(text(&pull(dir.path(), PullPolicy::Always).unwrap()), "two");
    // Again, without the layer, which is there.
    let asked = proxy.requests().len();
    assert_eq!(text(&pull(dir.path(), PullPolicy::Always).unwrap()), "two");
    assert_eq!(proxy.requests().len() - asked, 2);
}

#[test]
fn a_digest_is_pulled_and_verified() {
    let registry = Registry::start();
    registry.push(&Image::small("one"), "app:tag");
    let digest = crate::support::images::digest(&Image::small("one").blobs().pop().unwrap());
    let dir = scratch();
    let client = client_in(dir.path()).build().unwrap();
    let reference = format!("{}/app@{digest}", registry.address());
    let image = client.pull(&reference).unwrap();
    assert_eq!(image.digest().to_string(), digest);
    assert_eq!(text(&image), "one");
    // The tag is only a label then.
    let image = client.pull(&format!("{}/app:nonsense@{digest}", registry.address())).unwrap();
    assert_eq!(text(&image), "one");
}

#[test]
fn mirrors_are_asked_first_and_the_registry_if_they_fail() {
    let registry = Registry::start();
    registry.push(&Image::small("one"), "app:1");
    registry.push(&Image::small("two"), "app:2");
    let dead = Proxy::start("", |_| Action::Answer(404, Vec::new(), Vec::new()));
    let mirror = Proxy::start(&registry.address(), |_| Action::Forward);
    let dir = scratch();
    // A registry that does not exist: only its mirror can have answered.
    let client = client_in(dir.path())
        .mirror("registry.invalid", dead.address())
        .mirror("registry.invalid", format!("http://{}", mirror.address()))
        .build()
        .unwrap();
    assert_eq!(text(&client.pull("registry.invalid/app:1").unwrap()), "one");
    assert_eq!(dead.requests().len(), 1, "the one that answered is asked for the rest");
    assert_eq!(mirror.requests().len(), 3);

    let client = client_in(dir.path()).mirror(registry.address(), dead.address()).build().unwrap();
    assert_eq!(text(&client.pull(&format!("{}/app:2", registry.address())).unwrap()), "two");
    assert_eq!(dead.requests().len(), 2);

    // A mirror that has the documents, but not the layer.
    let layer = crate::support::images::digest(&Image::small("three").blobs()[0]);
    registry.push(&Image::small("three"), "app:3");
    let poor = Proxy::start(&registry.address(), move |request| match request.path.contains(&layer) {
        true => Action::Answer(404, Vec::new(), Vec::new()),
        false => Action::Forward,
    });
    let client = client_in(dir.path()).mirror(registry.address(), poor.address()).build().unwrap();
    assert_eq!(text(&client.pull(&format!("{}/app:3", registry.address())).unwrap()), "three");
    assert_eq!(poor.requests().len(), 3);
}

#[test]
fn progress_is_told_of_every_layer_to_its_end() {
    let registry = Registry::start();
    let layers = (0..3).map(|i| tar(&[("data", &noise(i, 700_000 + i as usize))])).collect();
    let image = Image::new(layers);
    let sizes: Vec<u64> = image.blobs()[..3].iter().map(|blob| blob.len() as u64).collect();
    let reference = registry.push(&image, "app:1");
    let told = Arc::new(Mutex::new(Vec::new()));
    let dir = scratch();
    let client = client_in(dir.path()).on_progress({
        let told = told.clone();
        move |p| told.lock().unwrap().push((p.index, p.count, p.current, p.total))
    });
    client.build().unwrap().pull(&reference).unwrap();
    let told = told.lock().unwrap();
    for (index, size) in sizes.iter().enumerate() {
        let mine: Vec<_> = told.iter().filter(|t| t.0 == index).collect();
        assert!(mine.len() >= 3, "{mine:?}");
        assert!(mine.iter().all(|t| t.1 == 3 && t.3 == *size), "{mine:?}");
        assert!(mine.windows(2).all(|two| two[0].2 <= two[1].2), "{mine:?}");
        assert_eq!(mine.last().unwrap().2, *size);
    }
}

#[test]
fn r9_2_pulls_work_inside_a_runtime_and_leave_nothing() {
    if std::env::var_os("CC_TEST_ALONE").is_none() {
        // It counts threads and descriptors of the process.
        alone("pulls::r9_2_pulls_work_inside_a_runtime_and_leave_nothing", &[("CC_TEST_ALONE", "1")]);
        return;
    }
    let registry = Registry::start();
    let good = registry.push(&Image::small("one"), "app:1");
    let bad = format!("{}/nothing:1", registry.address());
    let count = |what: &str| std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let round = || {
        let dir = scratch();
        let client = client_in(dir.path()).build().unwrap();
        runtime.block_on(async { assert_eq!(text(&client.pull(&good).unwrap()), "one") });
        assert!(client.pull(&bad).is_err());
        let held = client.pull(&good).unwrap();
        (dir, held)
    };
    drop(round());
    let before = (count("fd"), count("task"));
    for _ in 0..10 {
        drop(round());
    }
    // The kernel takes a moment to bury a thread that was joined.
    crate::support::wait_until("descriptors and threads are gone", || (count("fd"), count("task")) == before);
    // The control: what is held is seen.
    let held = round();
    assert!(count("fd") > before.0);
    drop(held);
}

#[test]
fn r6_8_an_image_without_layers_is_an_empty_root() {
    let registry = Registry::start();
    let reference = registry.push(&Image::new(Vec::new()), "empty:1");
    let dir = scratch();
    let image = client_in(dir.path()).build().unwrap().pull(&reference).unwrap();
    assert!(image.layers().is_empty());
    assert_eq!(image.size(), 0);
    assert_eq!(read(&root(&image), "etc/passwd"), None);
}

#[test]
fn the_same_layer_twice_is_fetched_once() {
    let registry = Registry::start();
    let layer = tar(&[("name", b"twice")]);
    registry.push(&Image::new(vec![layer.clone(), layer]), "twice:1");
    let proxy = Proxy::start(&registry.address(), |_| Action::Forward);
    let dir = scratch();
    let client = client_in(dir.path()).build().unwrap();
    let image = client.pull(&format!("{}/twice:1", proxy.address())).unwrap();
    assert_eq!(image.layers().len(), 2);
    assert_eq!(
        proxy.requests().iter().filter(|request| request.is_blob()).count(),
        2,
        "configuration, layer"
    );
}

#[test]
fn what_is_no_reference_or_option_is_refused() {
    let dir = scratch();
    let client = client_in(dir.path()).build().unwrap();
    for bad in ["", "UPPER", "a b", "name:", "name@sha256:12", "http://name", "../etc", "name:tag@sha256:XX"]
    {
        let error = client.pull(bad).unwrap_err();
        assert!(matches!(error, Error::Reference { .. }), "{bad}: {error}");
    }
    assert!("linux".parse::<Platform>().is_err());
    assert!("linux/../amd64".parse::<Platform>().is_err());
    assert!(Client::builder().no_progress_timeout(std::time::Duration::ZERO).build().is_err());
}
