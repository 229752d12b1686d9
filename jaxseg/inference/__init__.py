"""From images to logits and labels: one Predictor that evaluation and prediction share."""
