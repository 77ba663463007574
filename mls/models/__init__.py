"""Networks: the ResNet backbone, heads, batch norm, and loading weights from elsewhere."""
