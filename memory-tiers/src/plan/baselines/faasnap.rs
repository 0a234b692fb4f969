//! FaaSnap (Ao et al., EuroSys 2022): files are mapped region by region, and the pages of the loading set
//! are read into the page cache beside the guest.

use varve_snapshot::{Region, layout};

use crate::plan::image::ImageInfo;
use crate::plan::placement::{Mechanism, Placement};
use crate::plan::policy::Policy;
use crate::plan::strategy::Traits;
use crate::ram::kind::PrefaultMode;

pub const TRAITS: Traits =
    Traits { name: "faasnap", baseline: true, layout: layout::FAASNAP, place, ..Traits::NONE };

fn place(region: &Region, image: Option<&ImageInfo>, _: &Policy) -> Placement {
    match image {
        None => Placement::only(Mechanism::Base),
        Some(image) if !image.mappable => Placement::copied_if_hot(region),
        Some(_) => {
            Placement { how: Mechanism::Map, ahead: region.is_hot().then_some(PrefaultMode::Cache) }
        }
    }
}
