//! A page that needs no network, and tables on it.

use maud::{DOCTYPE, Markup, PreEscaped, html};

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
.charts { margin-top: 1.5em; display: grid; grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); gap: .5em 2em }
.maps { display: flex; flex-wrap: wrap; gap: 1.5em }
figure { margin: 0 0 1em } figcaption { font-weight: 600; margin-bottom: .4em }
svg { max-width: 100%; height: auto } svg text { font-size: 12px; fill: #1c2733 }
.legend { font-size: 12px; color: #5a6875; margin: .2em 0 0 }
";

/// The whole page. `facts` tell where and with what it was made.
pub fn page(title: &str, facts: &[String], body: &Markup) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { "varve: " (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (title) }
                p.note { @for fact in facts { (fact) br; } }
                (body)
            }
        }
    }
    .into_string()
}

/// A heading and rows; `meanings` of the columns, if they need any.
pub fn table(rows: &[Vec<String>], meanings: &[&str]) -> Markup {
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
                        td.wrong[cell.ends_with("WRONG") || cell == "missed"] { (cell) }
                    } }
                }
            }
        } }
    }
}
