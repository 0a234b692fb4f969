//! The page: all that the demo has found, in one HTML file that needs no network.

use maud::{Markup, PreEscaped, html};

use super::charts::charts;
use super::columns::{COLUMNS, comparison, details};
use super::life::{INPUT, Life, MEMORY, RECORDED_INPUTS, classes};
use super::text::millis;
use super::trim;
use crate::plot::html::{page, table};

/// The whole page. `facts` tell where and with what it was made.
pub fn render(facts: &[String], lives: &[Life]) -> String {
    let body = html! {
        @for life in lives { (section(life)) }
        h2 { "What the columns mean" }
        dl {
            @for (name, meaning, _) in COLUMNS { dt { b { (name) } } dd { (meaning) } }
        }
    };
    page("the life of a function", facts, &body)
}

fn section(life: &Life) -> Markup {
    let meanings: Vec<_> = COLUMNS.iter().map(|(_, meaning, _)| *meaning).collect();
    let inputs: Vec<_> = RECORDED_INPUTS.iter().map(u64::to_string).collect();
    html! {
        h2 { (life.function) }
        p {
            "One vCPU, " (MEMORY) " of memory. Recorded with the inputs " (inputs.join(", "))
            ", restored and asked for input " (INPUT) ", which was not recorded. Without a snapshot \
             the first answer came " (millis(life.cold_ms)) " after the start; warm, the machine \
             answered in " (millis(life.warm_ms)) "."
        }
        h3 { "Before the restore" }
        div.scroll { table.steps {
            @for (what, took, outcome) in &life.steps {
                tr { td { (what) } td style="text-align:right" { (millis(*took)) } td { (outcome) } }
            }
        } }
        h3 { "What trimming gains" }
        p.note {
            "The same machine saved twice: as it is, and after its free pages were taken back. Both \
             restored as a whole (" (trim::STRATEGY) ")."
        }
        (table(&trim::table(&life.trimming), &[]))
        h3 { "What memory consists of" }
        (table(&classes(&life.tiered), &[]))
        h3 { "Strategies" }
        (table(&comparison(&life.rows), &meanings))
        p.note { "Bytes read by image, and faults answered by class (r: read, w: write):" }
        (table(&details(&life.rows), &[]))
        (charts(&life.rows, life.warm_ms))
        h3 { "Memory maps" }
        p.note { "Guest memory from left to right and top to bottom, as each layout classifies it." }
        div.maps {
            // Drawn by varve, from numbers and names of its own.
            @for (layout, svg) in &life.maps {
                figure { figcaption { (layout) } (PreEscaped(svg)) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::columns::tests::rows;
    use crate::demo::said::Tiered;
    use crate::demo::trim::Saved;

    #[test]
    fn text_is_escaped_and_nothing_is_fetched() {
        let life = Life {
            function: "<json>".into(),
            cold_ms: 9000.0,
            warm_ms: 5.0,
            trimming: rows().map(|row| Saved { how: "<as>", took_ms: 1.0, stored: 0, row }).into(),
            steps: vec![("boot".into(), 10.0, "a < b".into())],
            tiered: Tiered { pages: 0, classes: Vec::new(), images: Vec::new() },
            rows: rows().into(),
            maps: vec![("flat", "<svg><rect/></svg>".into())],
        };
        let page = render(&["fact".into()], &[life]);
        assert!(page.contains("&lt;json&gt;") && page.contains("a &lt; b"), "{page}");
        assert!(page.contains("<svg><rect/></svg>") && page.contains("1 of 6 WRONG"), "{page}");
        for fetched in ["http", "src=", "<link", "<script", "url("] {
            assert!(!page.contains(fetched), "{fetched}");
        }
    }
}
