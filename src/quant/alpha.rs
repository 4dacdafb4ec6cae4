//! The linearity theorem's coefficient of one tensor: what the model loses per unit of relative
//! squared error in it (arXiv 2411.17525, Algorithm 3), and what tensors lose together.

/// `loss = alpha * error`, fitted through the origin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alpha {
    /// Not below zero.
    pub value: f64,
    /// Share of the losses' spread that the line explains.
    pub r2: f64,
}

impl Alpha {
    /// Fits pairs of error and loss. The paper's errors are of one size; over two decades the
    /// largest would be all that counts, so each pair counts by its share of its own error.
    pub fn fit(pairs: &[(f64, f64)]) -> Alpha {
        let ratios = || pairs.iter().map(|(error, loss)| loss / error);
        let value = ratios().sum::<f64>() / pairs.len().max(1) as f64;
        let mean = pairs.iter().map(|(_, loss)| loss).sum::<f64>() / pairs.len().max(1) as f64;
        let square = |x: f64| x * x;
        let spread: f64 = pairs.iter().map(|(_, loss)| square(loss - mean)).sum();
        let missed: f64 = pairs.iter().map(|(error, loss)| square(loss - value * error)).sum();
        let r2 = if spread > 0.0 { 1.0 - missed / spread } else { 0.0 };
        Alpha { value: value.max(0.0), r2 }
    }
}

/// What errors in all tensors cost together, over the sum of what each of them costs alone.
///
/// The theorem has the two equal, and they are where losses are small. Where they are large they
/// add to each other, and the few windows in which tensors are measured alone are easier or harder
/// than others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Together {
    /// Sums and losses, each above those before.
    points: Vec<(f64, f64)>,
}

impl Together {
    /// Takes sums and losses in the order of the sums; a loss that is not above the one before it
    /// tells nothing, and is left out.
    pub fn new(points: impl IntoIterator<Item = (f64, f64)>) -> Together {
        let mut kept: Vec<(f64, f64)> = Vec::new();
        for (sum, loss) in points {
            let &(last_sum, last_loss) = kept.last().unwrap_or(&(0.0, 0.0));
            if sum > last_sum && loss > last_loss {
                kept.push((sum, loss));
            }
        }
        Together { points: kept }
    }

    /// The loss for a sum: along straight lines between logarithms, and in proportion to the sum
    /// below the first point and above the last. Without points it is the sum.
    pub fn loss(&self, sum: f64) -> f64 {
        let (Some(first), Some(last)) = (self.points.first(), self.points.last()) else {
            return sum;
        };
        let above = self.points.iter().position(|point| sum < point.0);
        let (low, high) = match above {
            Some(0) => return sum * first.1 / first.0,
            Some(above) => (self.points[above - 1], self.points[above]),
            None => return sum * last.1 / last.0,
        };
        let slope = (high.1 / low.1).ln() / (high.0 / low.0).ln();
        low.1 * (sum / low.0).powf(slope)
    }
}
