"""Reference pictures with known answers: a cat and a cup of coffee (both CC0, from scikit-image), and a sign."""
