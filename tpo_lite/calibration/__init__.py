"""How far a judge can be trusted: accuracy, position bias and length bias on pairs with known labels."""
