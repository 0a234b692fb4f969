//! varve's own strategies: each class of pages comes from its tier.

use varve_snapshot::{PageClass, Region, layout};

use super::image::ImageInfo;
use super::placement::{Mechanism, Placement};
use super::policy::{Policy, PrefaultBarrier, ReadOnlyPages};
use super::strategy::Traits;
use crate::ram::kind::PrefaultMode;

/// Packed images, one a class.
pub const TIERED: Traits = Traits {
    name: "tiered",
    layout: layout::TIERED,
    classes: true,
    packed: true,
    base_image: true,
    hugetlb: true,
    place: place_tiered,
    ..Traits::NONE
};

/// One image in guest layout.
pub const TEMPLATE: Traits = Traits {
    name: "template",
    layout: layout::TEMPLATE,
    classes: true,
    base_image: true,
    one_layer: true,
    place: place_template,
    ..Traits::NONE
};

/// Stands for the strategy with the lowest predicted cost, which places the pages.
pub const AUTO: Traits = Traits { name: "auto", flat: true, base_image: false, ..TIERED };

fn place_tiered(region: &Region, image: Option<&ImageInfo>, policy: &Policy) -> Placement {
    place(region, image, policy, false)
}

fn place_template(region: &Region, image: Option<&ImageInfo>, policy: &Policy) -> Placement {
    place(region, image, policy, true)
}

/// With `touched`, cold pages that one recorded invocation touched are mapped for reading ahead: they
/// are in the same image.
fn place(region: &Region, image: Option<&ImageInfo>, policy: &Policy, touched: bool) -> Placement {
    let Some(image) = image else {
        let written = region.class == PageClass::ReadWrite;
        return Placement { how: Mechanism::Base, ahead: written.then_some(PrefaultMode::Write) };
    };
    if !image.mappable {
        return Placement::copied_if_hot(region);
    }
    let mapped = |ahead| Placement { how: Mechanism::Map, ahead };
    match region.class {
        PageClass::ReadWrite => mapped(Some(PrefaultMode::Write)),
        PageClass::ReadOnly => mapped(Some(read_only(image, policy))),
        PageClass::Zero | PageClass::Cold => match () {
            () if touched && region.is_hot() => mapped(Some(PrefaultMode::Read)),
            () if policy.asks_for_cold() => Placement::only(Mechanism::Fault),
            () => mapped(None),
        },
    }
}

/// Read-only pages are used in place, or copied to local memory ahead of their use.
fn read_only(image: &ImageInfo, policy: &Policy) -> PrefaultMode {
    let costs = &policy.costs;
    let share = policy.waited(PrefaultBarrier::First);
    let copied = match policy.read_only {
        ReadOnlyPages::Mapped => false,
        ReadOnlyPages::Copied => true,
        ReadOnlyPages::Auto => {
            let in_place = costs.populate_read * share + costs.in_place(image);
            costs.populate_write * share < in_place
        }
    };
    if copied { PrefaultMode::Write } else { PrefaultMode::Read }
}
