from django.db import models


class Order(models.Model):
    email = models.EmailField()
    cents = models.IntegerField()
    state = models.CharField(max_length=20, default="placed")
