"""Networks: the ResNet backbone, the projector, and other people's weights."""
