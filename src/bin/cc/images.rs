//! Images: fetching, listing, removing.

use cc::oci::{Client, Freed, Image, PullPolicy};

use super::exit::{Failure, USAGE};
use super::progress::Bars;
use super::{CacheArgs, Pull, RegistryArgs};

fn client(cache: &CacheArgs) -> Result<Client, Failure> {
    let mut builder = Client::builder();
    if let Some(dir) = &cache.cache_dir {
        builder = builder.cache_dir(dir);
    }
    Ok(builder.build()?)
}

/// The image `reference`, from the cache or its registry.
pub(crate) fn fetch(reference: &str, args: &RegistryArgs) -> Result<Image, Failure> {
    let mut builder = Client::builder().policy(match args.pull {
        Pull::Missing => PullPolicy::IfNotPresent,
        Pull::Always => PullPolicy::Always,
        Pull::Never => PullPolicy::Never,
    });
    if let Some(dir) = &args.cache.cache_dir {
        builder = builder.cache_dir(dir);
    }
    if args.plain_http {
        let parsed: cc::oci::Reference = reference.parse()?;
        builder = builder.plain_http(parsed.registry());
    }
    if let Some(platform) = &args.platform {
        builder = builder.platform(platform.parse().map_err(|e: cc::oci::Error| Failure::new(USAGE, e))?);
    }
    let bars = Bars::new();
    if let Some(bars) = bars.clone() {
        builder = builder.on_progress(move |p| bars.report(p));
    }
    let image = builder.build()?.pull(reference);
    if let Some(bars) = bars {
        bars.clear();
    }
    Ok(image?)
}

pub(crate) fn pull(reference: &str, args: &RegistryArgs) -> Result<u8, Failure> {
    let image = fetch(reference, args)?;
    println!("{}", image.digest());
    Ok(0)
}

pub(crate) fn list(json: bool, cache: &CacheArgs) -> Result<u8, Failure> {
    let entries = client(cache)?.list()?;
    if json {
        for e in entries {
            let platform = e.platform.to_string();
            let object = serde_json::json!({
                "reference": e.reference,
                "digest": e.digest.to_string(),
                "platform": platform,
                "download_bytes": e.download_size,
            });
            println!("{object}");
        }
        return Ok(0);
    }
    println!("{:<50} {:<22} {:<14} {:>12}", "IMAGE", "DIGEST", "PLATFORM", "DOWNLOAD");
    for e in entries {
        let digest = e.digest.to_string();
        let digest = digest.get(..19).unwrap_or(&digest);
        let size = indicatif::HumanBytes(e.download_size).to_string();
        let name = e.reference.as_deref().unwrap_or("<none>");
        println!("{name:<50} {digest:<22} {:<14} {size:>12}", e.platform.to_string());
    }
    Ok(0)
}

pub(crate) fn remove(images: &[String], cache: &CacheArgs) -> Result<u8, Failure> {
    let client = client(cache)?;
    for image in images {
        tell(&format!("removed {image}"), &client.remove(image)?);
    }
    Ok(0)
}

pub(crate) fn prune(cache: &CacheArgs) -> Result<u8, Failure> {
    tell("pruned", &client(cache)?.prune()?);
    Ok(0)
}

fn tell(what: &str, freed: &Freed) {
    println!("{what}: {}", indicatif::HumanBytes(freed.bytes()));
}
