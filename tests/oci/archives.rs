//! Images from files and to files.

use std::fs;

use cc::oci::{Error, PullPolicy};

use crate::support::images::{Compression, Image, digest, index, noise, tar, write_layout};
use crate::support::registry::Registry;
use crate::support::{alone, client_in, read, root, run, scratch, text};

fn image() -> Image {
    Image::new(vec![tar(&[("name", b"lower"), ("data", &noise(3, 100_000))]), tar(&[("name", b"upper")])])
}

#[test]
fn layouts_are_loaded_from_directories_and_tars() {
    for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
        let layout = scratch();
        image().compressed(compression).write_layout(layout.path(), Some("example.com/team/app:1"));
        let file = scratch();
        let tarred = file.path().join("layout.tar");
        run("tar", &["-C", layout.path().to_str().unwrap(), "-cf", tarred.to_str().unwrap(), "."]);
        for path in [layout.path(), &tarred] {
            let dir = scratch();
            let client = client_in(dir.path()).policy(PullPolicy::Never).build().unwrap();
            let images = client.load(path).unwrap();
            assert_eq!(images.len(), 1);
            assert_eq!(text(&images[0]), "upper");
            // It is there by its name from now on.
            let again = client.pull("example.com/team/app:1").unwrap();
            assert_eq!(again.digest(), images[0].digest());
            assert_eq!(read(&root(&again), "data").unwrap(), noise(3, 100_000));
        }
    }
}

#[test]
fn archives_of_docker_save_are_loaded() {
    let layout = scratch();
    image().write_layout(layout.path(), None);
    let file = scratch();
    let saved = file.path().join("saved.tar");
    let from = format!("oci:{}", layout.path().display());
    let to = format!("docker-archive:{}:docker.io/library/app:7", saved.display());
    run("skopeo", &["--insecure-policy", "copy", "--quiet", &from, &to]);
    let dir = scratch();
    let client = client_in(dir.path()).policy(PullPolicy::Never).build().unwrap();
    let images = client.load(&saved).unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].reference(), Some("docker.io/library/app:7"));
    assert_eq!(text(&client.pull("app:7").unwrap()), "upper");
    assert_eq!(images[0].config().cmd, ["one", "two"]);
}

#[test]
fn skopeo_and_umoci_read_what_is_exported() {
    let registry = Registry::start();
    let reference = registry.push(&image(), "app:1");
    let dir = scratch();
    let pulled = client_in(dir.path()).build().unwrap().pull(&reference).unwrap();
    let out = scratch();
    let layout = out.path().join("layout");
    let written = pulled.export(&layout).unwrap();

    let back = registry.push_layout(&layout, "back:1", &["--preserve-digests"]);
    let client = client_in(dir.path()).build().unwrap();
    let again = client.pull(&back).unwrap();
    assert_eq!(again.digest(), &written);
    assert_eq!(again.config(), pulled.config());

    let place = scratch();
    let copy = format!("oci:{}:x", place.path().join("copy").display());
    run("skopeo", &["--insecure-policy", "copy", "--quiet", &format!("oci:{}", layout.display()), &copy]);
    let bundle = place.path().join("bundle");
    let from = format!("{}:x", place.path().join("copy").display());
    run("umoci", &["unpack", "--rootless", "--image", &from, bundle.to_str().unwrap()]);
    assert_eq!(fs::read(bundle.join("rootfs/name")).unwrap(), b"upper");
    assert_eq!(fs::read(bundle.join("rootfs/data")).unwrap(), noise(3, 100_000));

    // Never over something.
    let error = pulled.export(&layout).unwrap_err();
    assert!(matches!(error, Error::Option { .. }), "{error}");
}

#[test]
fn r6_6_lies_of_a_layout_are_found() {
    let whole = image().compressed(Compression::Plain);
    let blobs = whole.blobs();
    let dir = scratch();
    let client = client_in(dir.path()).build().unwrap();
    // One byte of each blob in turn.
    for (n, blob) in blobs.iter().enumerate() {
        let layout = scratch();
        whole.write_layout(layout.path(), Some("a/b:1"));
        let mut lie = blob.clone();
        let middle = lie.len() / 2;
        lie[middle] ^= 1;
        fs::write(layout.path().join("blobs/sha256").join(&digest(blob)[7..]), lie).unwrap();
        let error = client.load(layout.path()).unwrap_err();
        assert!(matches!(error, Error::Digest { .. }), "blob {n}: {error}");
        assert!(client.list().unwrap().is_empty());
    }
    // The control: the same without a lie.
    let layout = scratch();
    whole.write_layout(layout.path(), Some("a/b:1"));
    assert_eq!(client.load(layout.path()).unwrap().len(), 1);
}

#[test]
fn r6_6_names_in_an_archive_lead_nowhere() {
    let dir = scratch();
    let client = client_in(dir.path()).build().unwrap();
    let outside = scratch();
    let secret = outside.path().join("secret");
    fs::write(&secret, "{\"secret\": true}").unwrap();

    let mut files = vec![secret.display().to_string(), "../secret".into(), "a/../../secret".into()];
    files.push("link".into());
    for name in files {
        let manifest = serde_json::json!([{"Config": name, "RepoTags": ["x:1"], "Layers": []}]).to_string();
        // In a tar, and in a directory beside the file.
        let archive = outside.path().join("archive.tar");
        let mut builder = tar::Builder::new(fs::File::create(&archive).unwrap());
        let mut header = tar::Header::new_ustar();
        header.set_size(manifest.len() as u64);
        builder.append_data(&mut header, "manifest.json", manifest.as_bytes()).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, "link", &secret).unwrap();
        builder.finish().unwrap();
        let error = client.load(&archive).unwrap_err();
        assert!(error.to_string().contains("it has no"), "{name}: {error}");

        let inner = scratch();
        fs::write(inner.path().join("manifest.json"), &manifest).unwrap();
        let error = client.load(inner.path()).unwrap_err();
        assert!(error.to_string().contains("neither"), "{name}: {error}");
    }
    // Digests that are none.
    for bad in ["sha256:../../../../etc/passwd", "sha256:ABC", "md5:d41d8cd98f00b204e9800998ecf8427e"] {
        let layout = scratch();
        let mut entry = image().descriptor();
        entry["digest"] = bad.into();
        write_layout(layout.path(), &[&image()], &[], &index(&[entry]));
        let error = client.load(layout.path()).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{bad}: {error}");
    }
    // A blob that is no regular file must not be waited for.
    let layout = scratch();
    image().write_layout(layout.path(), None);
    let index_file = layout.path().join("index.json");
    fs::remove_file(&index_file).unwrap();
    run("mkfifo", &[index_file.to_str().unwrap()]);
    assert!(client.load(layout.path()).unwrap_err().to_string().contains("no regular file"));
}

#[test]
fn images_are_listed_removed_and_pruned() {
    if std::env::var_os("CC_TEST_ALONE").is_none() {
        // A program that another test starts holds this process's locks until it has been executed.
        alone("archives::images_are_listed_removed_and_pruned", &[("CC_TEST_ALONE", "1")]);
        return;
    }
    let dir = scratch();
    let client = client_in(dir.path()).policy(PullPolicy::Never).build().unwrap();
    let shared = tar(&[("shared", &noise(1, 50_000))]);
    let one = Image::new(vec![shared.clone(), tar(&[("name", b"one")])]);
    let two = Image::new(vec![shared.clone(), tar(&[("name", b"two")])]);
    for (image, name) in [(&one, "a.example/one:1"), (&two, "a.example/two:1")] {
        let layout = scratch();
        image.write_layout(layout.path(), Some(name));
        drop(client.load(layout.path()).unwrap());
    }
    let names: Vec<_> = client.list().unwrap().into_iter().map(|e| e.reference.unwrap()).collect();
    assert_eq!(names, ["a.example/one:1", "a.example/two:1"]);
    assert_eq!(client.prune().unwrap().bytes(), 0, "all of it is named");

    let freed = client.remove("a.example/one:1").unwrap();
    assert_eq!(freed.images, ["a.example/one:1"]);
    let ids: Vec<String> = freed.layers.iter().map(|(id, _)| id.to_string()).collect();
    assert_eq!(ids, [digest(&one.layers[1].0)], "the shared layer stays");
    assert!(freed.bytes() >= one.layers[1].0.len() as u64);
    assert!(matches!(client.remove("a.example/one:1").unwrap_err(), Error::NotLocal { .. }));
    assert_eq!(text(&client.pull("a.example/two:1").unwrap()), "two");

    // An image in use keeps its layers, and whoever holds only a layer of it does too.
    let held = client.pull("a.example/two:1").unwrap();
    let layer = held.layers()[1].clone();
    let freed = client.remove("a.example/two:1").unwrap();
    assert_eq!((freed.images.len(), freed.layers.len()), (1, 0));
    assert_eq!(client.prune().unwrap().layers.len(), 0);
    assert_eq!(text(&held), "two");
    drop(held);
    let freed = client.prune().unwrap();
    assert_eq!(freed.layers.len(), 1, "the layer that is not held");
    drop(layer);
    assert_eq!(client.prune().unwrap().layers.len(), 1);
    assert_eq!(client.prune().unwrap().bytes(), 0);
}
