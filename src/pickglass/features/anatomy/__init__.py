"""Anatomy: what the layers of a network are, what they see of an image, and what they show and tell of defects.

- facts: grid, stride, channels and cost of each layer; theoretical_field: its receptive field by the graph.
- gradient_field: its receptive field measured on gradients.
- visibility: whether one defect still stands out in a layer; probe: what labelled images say of a layer.
"""
