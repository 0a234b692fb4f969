//! `varve pool publish`, `forget` and `status`: what nodes keep of a snapshot.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use varve_pool::client::NodeClient;
use varve_pool::{Places, Wanted};
use varve_snapshot::ManifestReader;

use super::tenant;
use crate::cli::out::{human, outln, progress};

/// Options of `varve pool publish`.
#[derive(Debug, Args)]
pub struct PublishArgs {
    /// Folder of the tiered snapshot
    dir: PathBuf,

    /// Nodes, separated by commas
    #[arg(long, value_name = "HOST:PORT,…", value_delimiter = ',', required = true)]
    to: Vec<String>,

    /// Number of nodes that keep each page
    #[arg(long, value_name = "N", default_value_t = 1)]
    copies: usize,

    /// Image to publish (repeatable): cold for tiered, memory for the strategies that use the raw
    /// memory file
    #[arg(long = "image", value_name = "NAME", default_value = "cold")]
    images: Vec<String>,

    /// File with the tenant's key
    #[arg(long, value_name = "FILE")]
    keys: PathBuf,

    /// The tenant, if the file has keys of several
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
}

/// Options of `varve pool forget`.
#[derive(Debug, Args)]
pub struct ForgetArgs {
    /// Folder of the snapshot
    dir: PathBuf,

    /// File with the tenant's key
    #[arg(long, value_name = "FILE")]
    keys: PathBuf,
}

/// Options of `varve pool status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The nodes
    #[arg(value_name = "HOST:PORT", required = true)]
    nodes: Vec<String>,

    /// File with the tenant's key
    #[arg(long, value_name = "FILE")]
    keys: PathBuf,

    /// The tenant, if the file has keys of several
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Brings images into the pool.
pub fn publish(args: &PublishArgs) -> Result<ExitCode, Box<dyn Error>> {
    let (tenant, key) = tenant(&args.keys, args.tenant.as_deref())?;
    let wanted = Wanted { nodes: args.to.clone(), copies: args.copies, tenant, key };
    let snapshot = ManifestReader::open(&args.dir)?;
    for image in &args.images {
        let entry = snapshot.named(image)?;
        if !snapshot.proves(entry) {
            return Err(format!(
                "{:?}: the manifest has no digests to prove image {image} by, as a varve before format \
                 1.2 wrote it: tier the snapshot again",
                args.dir
            )
            .into());
        }
        let path = snapshot.image_path(entry)?;
        let place = varve_pool::publish(&args.dir, image, &path, &wanted, progress(entry.bytes))?;
        outln!(
            "image {image}: {} in {} parts, each on {} of {} nodes",
            human(place.bytes),
            place.shards.len(),
            place.copies(),
            place.nodes.len()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes all images of a snapshot out of the pool.
pub fn forget(args: &ForgetArgs) -> Result<ExitCode, Box<dyn Error>> {
    for (image, place) in Places::read(&args.dir)?.images {
        let (_, key) = tenant(&args.keys, Some(&place.tenant.to_string()))?;
        varve_pool::forget(&args.dir, &image, &key)?;
        outln!("image {image}: forgotten");
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows what nodes keep; fails if one of them does not say.
pub fn status(args: &StatusArgs) -> Result<ExitCode, Box<dyn Error>> {
    let (tenant, key) = tenant(&args.keys, args.tenant.as_deref())?;
    let mut shown = Vec::new();
    let mut failed = false;
    for address in &args.nodes {
        match NodeClient::new(address, tenant.clone(), key.clone()).status() {
            Ok(status) if args.json => {
                shown.push(json!({ "node": address, "status": status }));
            }
            Ok(s) => outln!(
                "{address}: {} images, {} objects, {}; {} of {} used; {} reads, {}",
                s.publications,
                s.objects,
                human(s.bytes),
                human(s.used),
                human(s.limit),
                s.reads,
                human(s.read_bytes)
            ),
            Err(e) => {
                failed = true;
                let error = crate::error::chain(&e);
                match args.json {
                    true => shown.push(json!({ "node": address, "error": error })),
                    false => eprintln!("varve: error: {error}"),
                }
            }
        }
    }
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&shown)?);
    }
    Ok(ExitCode::from(u8::from(failed)))
}
