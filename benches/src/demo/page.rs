//! The page: all that the demo has found, in one HTML file that needs no network.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::charts::charts;
use super::columns::{COLUMNS, comparison, details};
use super::life::{INPUT, Life, MEMORY, RECORDED_INPUTS, classes};
use super::text::millis;
use super::trim;

const STYLE: &str = "
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2733; background: #fff;
       max-width: 1200px; margin: 2em auto; padding: 0 1em }
h1, h2, h3 { line-height: 1.2; margin: 1.6em 0 .5em } h1 { margin-top: 0 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: .25em .7em; text-align: right; white-space: nowrap; border-bottom: 1px solid #dde3e9 }
th:first-child, td:first-child, table.steps td { text-align: left }
th[title] { text-decoration: underline dotted #8a97a5; cursor: help }
.wrong { color: #b00; font-weight: bold } .note { color: #5a6875 }
.maps svg { width: 270px }
.charts { margin-top: 1.5em; display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: .5em 2em }
.maps { display: flex; flex-wrap: wrap; gap: 1.5em }
figure { margin: 0 0 1em } figcaption { font-weight: 600; margin-bottom: .4em }
svg { max-width: 100%; height: auto } svg text { font-size: 12px; fill: #1c2733 }
.legend { font-size: 12px; color: #5a6875; margin: .2em 0 0 }
";

/// The whole page. `facts` tell where and with what it was made.
pub fn render(facts: &[String], lives: &[Life]) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { "varve: the life of a function" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "The life of a function" }
                p.note { @for fact in facts { (fact) br; } }
                @for life in lives { (section(life)) }
                h2 { "What the columns mean" }
                dl {
                    @for (name, meaning, _) in COLUMNS { dt { b { (name) } } dd { (meaning) } }
                }
            }
        }
    }
    .into_string()
}

/// Writes it, whole or not at all, for everyone to read as far as the umask allows.
pub fn save(path: &Path, page: &str) -> Result<()> {
    let write = || -> Result<()> {
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        fs::create_dir_all(folder)?;
        let mut file = tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o644))
            .tempfile_in(folder)?;
        file.write_all(page.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
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

fn table(rows: &[Vec<String>], meanings: &[&str]) -> Markup {
    let Some((heading, body)) = rows.split_first() else { return html! {} };
    html! {
        div.scroll { table {
            thead { tr {
                @for (index, name) in heading.iter().enumerate() {
                    th title=[meanings.get(index)] { (name) }
                }
            } }
            tbody {
                @for row in body {
                    tr { @for cell in row {
                        td.wrong[cell.ends_with("WRONG")] { (cell) }
                    } }
                }
            }
        } }
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

    #[test]
    fn a_page_replaces_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/report.html");
        save(&path, "one").unwrap();
        save(&path, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert!(format!("{:#}", save(&path.join("b"), "").unwrap_err()).contains("cannot write"));
    }
}
