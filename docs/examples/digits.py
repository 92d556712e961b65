"""An ordinary training script, as there are many: a network, three loaders, a loop. It knows nothing of pruning."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
labels = torch.tensor(digits.target)
parts = random_split(TensorDataset(images, labels), [896, 301, 600])
train = DataLoader(parts[0], batch_size=64, shuffle=True)
search, held_out = (DataLoader(part, batch_size=256) for part in parts[1:])

model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1),
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.Conv2d(32, 64, 3, stride=2, padding=1),
    nn.BatchNorm2d(64),
    nn.ReLU(),
    nn.Conv2d(64, 64, 3, padding=1),
    nn.BatchNorm2d(64),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(64 * 16, 10),
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(12):
    for x, y in train:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
model.eval()
