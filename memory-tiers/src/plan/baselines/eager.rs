//! All stored pages are read before the guest runs.

use varve_snapshot::{Region, layout};

use crate::plan::image::ImageInfo;
use crate::plan::placement::{Mechanism, Placement};
use crate::plan::policy::Policy;
use crate::plan::strategy::Traits;

pub const TRAITS: Traits = Traits {
    name: "eager",
    baseline: true,
    layout: layout::FLAT,
    flat: true,
    hugetlb: true,
    place,
    ..Traits::NONE
};

fn place(_: &Region, image: Option<&ImageInfo>, _: &Policy) -> Placement {
    Placement::only(image.map_or(Mechanism::Base, |_| Mechanism::Copy))
}
