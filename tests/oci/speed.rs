//! Figures, on request: they say something only when nothing else runs on the host.

use std::time::Instant;

use crate::support::images::{Image, tar};
use crate::support::{client_in, scratch};

#[test]
#[ignore = "a measurement; the first time it makes a Debian, which takes the network and a minute"]
fn pull_against_skopeo_and_umoci() {
    let figures = crate::pull::figures().unwrap();
    println!("ours {:.0} MB/s, skopeo and umoci {:.0} MB/s", figures.ours, figures.skopeo_and_umoci);
}

#[test]
#[ignore = "a measurement"]
fn opening_does_not_depend_on_the_number_of_files() {
    for files in [10, 100_000] {
        let names: Vec<String> = (0..files).map(|i| format!("dir{}/file{i}", i / 1000)).collect();
        let entries: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
        let layout = scratch();
        Image::new(vec![tar(&entries)]).write_layout(layout.path(), Some("a.example/many:1"));
        let dir = scratch();
        let client = client_in(dir.path()).policy(cc::oci::PullPolicy::Never).build().unwrap();
        drop(client.load(layout.path()).unwrap());
        let mut times: Vec<_> = (0..20)
            .map(|_| {
                let start = Instant::now();
                let image = client.pull("a.example/many:1").unwrap();
                let time = start.elapsed();
                drop(image);
                time
            })
            .collect();
        times.sort();
        println!("{files} files: opened in {:?} (median of 20)", times[10]);
    }
}
