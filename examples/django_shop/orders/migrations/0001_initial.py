from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    operations = [
        migrations.CreateModel(
            "Order",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("email", models.EmailField(max_length=254)),
                ("cents", models.IntegerField()),
                ("state", models.CharField(default="placed", max_length=20)),
            ],
        )
    ]
