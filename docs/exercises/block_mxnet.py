from resnet_mxnet import Residual  # before MXNet itself: it lends NumPy 2 the names that MXNet misses

from mxnet import np  # isort: skip

X = np.random.normal(size=(4, 3, 6, 6))  # images, channels, height, width
for block in (Residual(3), Residual(6, use_1x1conv=True, strides=2)):
    block.initialize()
    print(block(X).shape)
