//! REAP (Ustiugov et al., ASPLOS 2021): the working set is installed before the guest runs, all other
//! pages come by userfaultfd.

use varve_snapshot::{PageClass, Region, layout};

use crate::plan::image::ImageInfo;
use crate::plan::placement::{Mechanism, Placement};
use crate::plan::policy::Policy;
use crate::plan::strategy::Traits;

pub const TRAITS: Traits = Traits {
    name: "reap",
    baseline: true,
    layout: layout::REAP,
    watches_all: true,
    place,
    ..Traits::NONE
};

fn place(region: &Region, image: Option<&ImageInfo>, _: &Policy) -> Placement {
    let in_working_set = match image {
        None => region.is_hot() && region.class == PageClass::ReadWrite,
        Some(_) => region.is_hot(),
    };
    Placement::only(if in_working_set { Mechanism::Copy } else { Mechanism::Fault })
}
