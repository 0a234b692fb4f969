//! Firecracker's restore: the memory file is mapped as a whole, and every page faults.

use varve_snapshot::{Region, layout};

use crate::plan::image::ImageInfo;
use crate::plan::placement::{Mechanism, Placement};
use crate::plan::policy::Policy;
use crate::plan::strategy::Traits;

pub const TRAITS: Traits = Traits {
    name: "lazy",
    baseline: true,
    layout: layout::FLAT,
    flat: true,
    base_image: true,
    one_layer: true,
    place,
    ..Traits::NONE
};

fn place(_: &Region, image: Option<&ImageInfo>, policy: &Policy) -> Placement {
    match image {
        None => Placement::only(Mechanism::Base),
        Some(image) if !image.mappable || policy.pager.is_some() => {
            Placement::only(Mechanism::Fault)
        }
        Some(_) => Placement::only(Mechanism::Map),
    }
}
