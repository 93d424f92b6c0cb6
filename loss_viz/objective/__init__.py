"""The loss as a function of the flat weight vector: layout, functional calls, batching."""
