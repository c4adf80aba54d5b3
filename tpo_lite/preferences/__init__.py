"""From judgements to ratings, length-controlled scores and pairs."""
