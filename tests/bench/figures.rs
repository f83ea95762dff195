//! Several measurements of one thing: the one in the middle, and how far the others lie from it.

use serde_json::{Value, json};

#[derive(Debug, Clone)]
pub struct Figure {
    /// In order of size; not empty.
    sorted: Vec<f64>,
}

impl Figure {
    /// `None` of no measurement.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Figure> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        (!sorted.is_empty()).then_some(Figure { sorted })
    }

    pub fn median(&self) -> f64 {
        let middle = self.sorted.len() / 2;
        match self.sorted.len() % 2 {
            1 => self.sorted[middle],
            _ => f64::midpoint(self.sorted[middle - 1], self.sorted[middle]),
        }
    }

    pub fn min(&self) -> f64 {
        self.sorted[0]
    }

    pub fn max(&self) -> f64 {
        self.sorted[self.sorted.len() - 1]
    }

    /// The value that this part of all is not above.
    pub fn quantile(&self, part: f64) -> f64 {
        let at = (part * self.sorted.len() as f64).ceil() as usize;
        self.sorted[at.clamp(1, self.sorted.len()) - 1]
    }

    pub fn scaled(self, factor: f64) -> Figure {
        Figure { sorted: self.sorted.into_iter().map(|value| value * factor).collect() }
    }

    /// As `1.52 (1.48-1.60)`.
    pub fn text(&self) -> String {
        let digits = match self.median().abs() {
            ..10.0 => 2,
            10.0..100.0 => 1,
            _ => 0,
        };
        let of = |value: f64| format!("{value:.digits$}");
        match self.sorted.len() {
            1 => of(self.median()),
            _ => format!("{} ({}-{})", of(self.median()), of(self.min()), of(self.max())),
        }
    }

    pub fn json(&self) -> Value {
        json!({"median": self.median(), "min": self.min(), "max": self.max(), "all": self.sorted})
    }
}
