//! Small graphs as inline SVG.

use std::fmt::Write;

const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 56.0;
/// Room for the line itself at the upper edge.
const TOP: f64 = 3.0;

/// The marks of a graph: an area and its line, from the left, where the first moment is, to the
/// right. `high` is the value at the upper edge; values that are not known leave a hole.
pub fn paths(at: &[u64], values: &[Option<f64>], high: f64) -> String {
    let (Some(first), Some(last)) = (at.first(), at.last()) else { return String::new() };
    let span = (last.saturating_sub(*first)).max(1) as f64;
    let x = |at: u64| WIDTH * at.saturating_sub(*first) as f64 / span;
    let scale = if 0.0 < high && high.is_finite() { (HEIGHT - TOP) / high } else { 0.0 };
    let y = |value: f64| HEIGHT - (value * scale).clamp(0.0, HEIGHT - TOP);

    let (mut line, mut area) = (String::new(), String::new());
    let mut begun: Option<(f64, f64)> = None;
    for (at, value) in at.iter().zip(values) {
        match (value.filter(|value| value.is_finite()), begun) {
            (Some(value), before) => {
                let (x, y) = (x(*at), y(value));
                if before.is_none() {
                    let _ = write!(line, "M{x:.1} {y:.1}");
                    let _ = write!(area, "M{x:.1} {HEIGHT}V{y:.1}");
                } else {
                    let _ = write!(line, "L{x:.1} {y:.1}");
                    let _ = write!(area, "L{x:.1} {y:.1}");
                }
                begun = Some((x, y));
            }
            (None, Some((x, _))) => {
                end(&mut line, &mut area, x);
                begun = None;
            }
            (None, None) => {}
        }
    }
    if let Some((x, _)) = begun {
        end(&mut line, &mut area, x);
    }
    if line.is_empty() {
        return String::new();
    }
    format!(r#"<path class="area" d="{area}"/><path class="line" d="{line}"/>"#)
}

/// A single moment is a dot: a line of no length with round ends.
fn end(line: &mut String, area: &mut String, x: f64) {
    let _ = write!(line, "H{x:.1}");
    let _ = write!(area, "L{x:.1} {HEIGHT}Z");
}

/// The frame around the marks, with its text for those who do not see it. `label` is escaped.
pub fn svg(marks: &str, label: &str) -> String {
    format!(
        r#"<svg class="graph" role="img" aria-label="{label}" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none">{marks}</svg>"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_drawn_in_the_frame_and_holes_are_left() {
        let marks = paths(&[100, 110, 120, 130], &[Some(0.0), Some(50.0), None, Some(1e9)], 100.0);
        let line = r#"class="line" d="M0.0 56.0L100.0 29.5H100.0M300.0 3.0H300.0""#;
        assert!(marks.contains(line), "{marks}");
        let area = r#"class="area" d="M0.0 56V56.0L100.0 29.5L100.0 56ZM300.0 56V3.0L300.0 56Z""#;
        assert!(marks.contains(area), "{marks}");
    }

    #[test]
    fn nothing_known_is_nothing_drawn() {
        assert_eq!(paths(&[], &[], 1.0), "");
        assert_eq!(paths(&[1, 2], &[None, Some(f64::NAN)], 1.0), "");
        let flat = paths(&[1, 1], &[Some(0.0), Some(0.0)], 0.0);
        assert!(!flat.contains("NaN") && !flat.contains("inf"), "{flat}");
    }
}
