//! `--report`: what a conversion did, as one page without a network.
//!
//! Numbers are in tables, curves are SVG; nothing is a script, so the page prints as it reads.

use std::fmt::Write;

use super::{Budget, Item, Line};

/// What the page shows.
pub struct Page<'a> {
    /// Names of the files.
    pub source: &'a str,
    /// Of the result.
    pub target: &'a str,
    /// Bytes of both.
    pub bytes: (u64, u64),
    /// Every tensor.
    pub lines: &'a [Line],
    /// Bits per weight and expected loss of every budget, where types were chosen.
    pub curve: &'a [(f64, f64)],
    /// What was asked for, bits per weight, and the loss expected of the choice.
    pub chosen: Option<(Budget, f64, f64)>,
    /// By tensor, in the order of `lines`: coefficient, R squared, expected loss.
    pub alphas: &'a [Option<(f64, f64, f64)>],
    /// Prompts with what the source and the result said.
    pub samples: &'a [Sample],
}

/// One prompt and two answers.
pub struct Sample {
    /// What both read.
    pub prompt: String,
    /// What the source wrote.
    pub before: String,
    /// What the result wrote.
    pub after: String,
}

const STYLE: &str = include_str!("report.css");

/// The page.
pub fn page(page: &Page) -> String {
    let mut html = String::from("<!doctype html>\n<html lang=\"en\">\n<head>\n");
    let title = format!("{} to {}", escape(page.source), escape(page.target));
    html += "<meta charset=\"utf-8\">\n";
    html += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
    let _ = writeln!(html, "<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>");
    let _ = writeln!(html, "<main>\n<h1>{title}</h1>");
    html += &summary(page);
    if !page.curve.is_empty() {
        html += &curve(page);
    }
    html += &layers(page);
    html += &tensors(page);
    html += &samples(page);
    html += "</main>\n</body>\n</html>\n";
    html
}

fn summary(page: &Page) -> String {
    let (before, after) = page.bytes;
    let share = 100.0 * after as f64 / before.max(1) as f64;
    let mut text = format!(
        "<p class=\"lead\">{:.1} MB became {:.1} MB, {share:.0}% of it.</p>\n",
        before as f64 / 1e6,
        after as f64 / 1e6
    );
    if let Some((budget, bits, loss)) = page.chosen {
        let asked = match budget {
            Budget::Bits(bits) => format!("{bits} bits per weight"),
            Budget::Bytes(bytes) => format!("{bytes} bytes"),
        };
        let _ = writeln!(
            text,
            "<p>Asked for {asked}; chosen: {bits:.3} bits per weight, with an expected KL \
             divergence of {loss:.4} nats per token from the source.</p>"
        );
    }
    text
}

/// The size-loss curve, the loss in powers of ten, and the chosen point.
fn curve(page: &Page) -> String {
    const WIDTH: f64 = 640.0;
    const HEIGHT: f64 = 320.0;
    let (left, bottom) = (56.0, 40.0);
    // As many points as a screen can tell apart, from the largest size down.
    let step = page.curve.len().div_ceil(256).max(1);
    let thinned = page.curve.iter().rev().step_by(step).rev();
    let points: Vec<(f64, f64)> =
        thinned.filter(|(_, loss)| *loss > 0.0).map(|&(b, l)| (b, l.log10())).collect();
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return String::new() };
    let (low, high) = (last.1.floor(), first.1.ceil().max(last.1.floor() + 1.0));
    let span = (last.0 - first.0).max(1e-9);
    let x = |bits: f64| left + (WIDTH - left - 16.0) * (bits - first.0) / span;
    let y = |log: f64| 12.0 + (HEIGHT - bottom - 12.0) * (high - log) / (high - low);
    let mut svg = format!(
        "<section>\n<h2>Size and loss</h2>\n<figure>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         role=\"img\" aria-label=\"Expected loss over bits per weight\">\n"
    );
    for power in low as i32..=high as i32 {
        let at = y(f64::from(power));
        let _ = writeln!(
            svg,
            "<line class=\"rule\" x1=\"{left}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" class=\"left\">{}</text>",
            WIDTH - 16.0,
            left - 6.0,
            at + 4.0,
            10_f64.powi(power)
        );
    }
    for bits in first.0.ceil() as i32..=last.0.floor() as i32 {
        let at = x(f64::from(bits));
        let _ = writeln!(
            svg,
            "<text x=\"{at:.1}\" y=\"{}\" class=\"middle\">{bits}</text>",
            HEIGHT - bottom + 18.0
        );
    }
    let path: Vec<String> =
        points.iter().map(|&(bits, log)| format!("{:.1},{:.1}", x(bits), y(log))).collect();
    let _ = writeln!(svg, "<polyline points=\"{}\"/>", path.join(" "));
    if let Some((_, bits, loss)) = page.chosen.filter(|chosen| chosen.2 > 0.0) {
        let (x, y) = (x(bits), y(loss.log10()));
        let _ = writeln!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{bits:.2} bits, {loss:.4}</text>",
            x + 9.0,
            y - 7.0
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.0}\" y=\"{}\" class=\"middle\">bits per weight</text>\n</svg>\n\
         <figcaption>Expected KL divergence, nats per token, of the best choice of types for each \
         size.</figcaption>\n</figure>\n</section>",
        (left + WIDTH) / 2.0,
        HEIGHT - 4.0
    );
    svg
}

/// `blk.12.ffn_up.weight` to its layer and role.
fn place(item: &Item) -> Option<(usize, &str)> {
    let (layer, role) = item.name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, role.strip_suffix(".weight")?))
}

/// Bits per layer and role: a map, darker where there are more.
fn layers(page: &Page) -> String {
    let matrices = || page.lines.iter().filter(|line| line.item.role.is_layer_matrix());
    let mut roles: Vec<&str> = Vec::new();
    let mut count = 0;
    for line in matrices() {
        let Some((layer, role)) = place(&line.item) else { continue };
        count = count.max(layer + 1);
        if !roles.contains(&role) {
            roles.push(role);
        }
    }
    if roles.is_empty() {
        return String::new();
    }
    let mut html = String::from(
        "<section>\n<h2>Bits by layer</h2>\n<div class=\"scroll\"><table class=\"map\">\n\
         <tr><th></th>",
    );
    roles.iter().for_each(|role| html += &format!("<th>{}</th>", escape(role)));
    html += "</tr>\n";
    for layer in 0..count {
        let _ = write!(html, "<tr><th>{layer}</th>");
        for role in &roles {
            let found = matrices().find(|line| place(&line.item) == Some((layer, role)));
            match found {
                Some(line) => {
                    let bits = line.item.bits_per_weight();
                    let shade = (8.0 * (bits - 1.5)).clamp(4.0, 60.0);
                    let _ = write!(html, "<td style=\"--shade:{shade:.0}%\">{bits:.2}</td>");
                }
                None => html += "<td></td>",
            }
        }
        html += "</tr>\n";
    }
    html + "</table></div>\n</section>\n"
}

fn tensors(page: &Page) -> String {
    let mut html = String::from(
        "<section>\n<h2>Tensors</h2>\n<div class=\"scroll\"><table>\n\
         <tr><th>tensor</th><th>type</th><th>bits</th><th>error</th>\
         <th>output error</th><th>alpha</th><th>R²</th><th>expected loss</th></tr>\n",
    );
    for (i, line) in page.lines.iter().enumerate() {
        let Line { item, error, output_error } = line;
        if !item.role.is_layer_matrix() && !item.role.is_vocabulary_matrix() {
            continue;
        }
        let output = output_error.map_or(String::new(), |error| format!("{error:.6}"));
        let alpha = page.alphas.get(i).copied().flatten();
        let cells = alpha.map_or([const { String::new() }; 3], |(alpha, r2, loss)| {
            [format!("{alpha:.4}"), format!("{r2:.3}"), format!("{loss:.6}")]
        });
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{:.3}</td><td>{error:.6}</td><td>{output}</td>\
             <td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&item.name),
            item.kind.name(),
            item.bits_per_weight(),
            cells[0],
            cells[1],
            cells[2]
        );
    }
    html + "</table></div>\n<p>Error: squared error over squared weights. Output error: the same \
            in the outputs for the calibration text. Alpha: KL divergence per unit of error, in \
            this tensor alone; together they may cost more or less than the sum.</p>\n\
            </section>\n"
}

fn samples(page: &Page) -> String {
    if page.samples.is_empty() {
        return String::new();
    }
    let mut html = String::from("<section>\n<h2>Before and after</h2>\n");
    for Sample { prompt, before, after } in page.samples {
        let _ = writeln!(
            html,
            "<article><h3>{}</h3><div class=\"pair\"><div><h4>before</h4><p>{}</p></div>\
             <div><h4>after</h4><p>{}</p></div></div></article>",
            escape(prompt),
            escape(before),
            escape(after)
        );
    }
    html + "</section>\n"
}

/// Text that a page may hold.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '"' => safe += "&quot;",
            letter => safe.push(letter),
        }
    }
    safe
}
