"""Published tables as data, their protocols run anew, their claims tested on any model."""
